"""fashion_mnist/vit: a small vision transformer."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST
from bigbatch.tasks.models import ViT


class FashionMNISTViT(FashionMNIST):
    """Attention over 16 patches; no rule of this project was ever adjusted on it."""

    name = "fashion_mnist/vit"

    def model(self, *, patch: int = 7, width: int = 64, num_blocks: int = 3, num_heads: int = 4) -> nn.Module:
        """See models/vit.py."""
        return ViT(patch=patch, width=width, num_blocks=num_blocks, num_heads=num_heads)
