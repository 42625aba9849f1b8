"""fashion_mnist/cnn: a small convolutional network without normalisation."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST
from bigbatch.tasks.models import cnn


class FashionMNISTCNN(FashionMNIST):
    """Convolutions without batch norm."""

    name = "fashion_mnist/cnn"

    def model(self, *, width: int = 16, hidden: int = 128) -> nn.Module:
        """Convolutions of `width` and 2 x `width` channels, then `hidden` units."""
        return cnn(width, hidden)
