"""digits/mlp: UCI's handwritten digits of 8 x 8, a 64-128-10 perceptron. Seconds, no download."""

from pathlib import Path

from torch import nn

from bigbatch.tasks.classification import Classification
from bigbatch.tasks.data.digits import digits
from bigbatch.tasks.models import mlp
from bigbatch.tasks.task import Splits


class DigitsMLP(Classification):
    """1,297 training images; the smoke test of everything."""

    name = "digits/mlp"

    def __init__(self, data: str | Path | None = None) -> None:
        """`data` is ignored: the set ships with this package."""

    def splits(self) -> Splits:
        """1,297 / 200 / 300 images of 8 x 8."""
        return digits()

    def model(self, *, hidden: int = 128) -> nn.Module:
        """64-hidden-10."""
        return mlp([64, hidden, 10])
