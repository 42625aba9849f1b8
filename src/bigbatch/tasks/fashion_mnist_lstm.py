"""fashion_mnist/lstm: the rows of an image as a sequence, 128 LSTM units; the set-up of LEGW."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST
from bigbatch.tasks.models import RowLSTM


class FashionMNISTLSTM(FashionMNIST):
    """Recurrent: large rates explode before they diverge."""

    name = "fashion_mnist/lstm"

    def model(self, *, units: int = 128, forget_bias: float = 0.0) -> nn.Module:
        """One LSTM layer of `units` and a linear head."""
        return RowLSTM(units=units, forget_bias=forget_bias)
