"""text/lstm: two LSTM layers over bytes; LEGW's set-up for language."""

from torch import nn

from bigbatch.tasks.models import ByteLSTM
from bigbatch.tasks.text import VOCAB_SIZE, Text


class TextLSTM(Text):
    """Recurrent; no rule of this project was ever adjusted on it."""

    name = "text/lstm"

    def model(self, *, units: int = 200, num_layers: int = 2, vocab_size: int = VOCAB_SIZE, forget_bias: float = 0.0) -> nn.Module:
        """See models/byte_lstm.py."""
        return ByteLSTM(units=units, num_layers=num_layers, vocab_size=self.vocabulary(vocab_size), forget_bias=forget_bias)
