"""LSTM over the rows of an image: the set-up of LEGW's MNIST experiment (You et al. 2019, arXiv:1901.08256)."""

from torch import Tensor, nn


class RowLSTM(nn.Module):
    """An image (n, 1, rows, columns) as a sequence of rows; the last hidden state of `units` goes to a linear head.

    `forget_bias` is the initial bias of the forget gates: 0 for torch's initialisation (uniform around 0), 1 to start by remembering
    (Jozefowicz et al. 2015).
    """

    def __init__(self, columns: int = 28, units: int = 128, forget_bias: float = 0.0, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(columns, units, batch_first=True)
        self.head = nn.Linear(units, classes)
        if forget_bias:
            bias: Tensor = self.lstm.bias_hh_l0  # type: ignore[assignment]
            nn.init.constant_(bias[units : 2 * units], forget_bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, rows, columns) to logits (n, classes)."""
        hidden, _ = self.lstm(images.squeeze(1))
        logits: Tensor = self.head(hidden[:, -1])
        return logits
