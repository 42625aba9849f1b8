"""fashion_mnist/resnet8: a residual network with batch norm."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST
from bigbatch.tasks.models import resnet8


class FashionMNISTResNet8(FashionMNIST):
    """Batch norm and residual blocks: where ghost batches and zero gammas matter."""

    name = "fashion_mnist/resnet8"

    def model(self, *, width: int = 16, stride: int = 2, zero_init_last_gamma: bool = True) -> nn.Module:
        """See models/resnet8.py."""
        return resnet8(width, stride, zero_init_last_gamma)
