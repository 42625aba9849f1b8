"""fashion_mnist/mlp: a 784-256-128-10 perceptron without normalisation."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST
from bigbatch.tasks.models import mlp


class FashionMNISTMLP(FashionMNIST):
    """The plainest model: what breaks here is optimisation alone."""

    name = "fashion_mnist/mlp"

    def model(self, *, hidden1: int = 256, hidden2: int = 128) -> nn.Module:
        """784-hidden1-hidden2-10."""
        return mlp([784, hidden1, hidden2, 10])
