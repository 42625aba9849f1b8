"""What the text tasks share: the bytes, cross-entropy and its metric."""

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bigbatch.core.checks import DataError
from bigbatch.core.metric import Metric
from bigbatch.tasks.data.text import split_text, text_of
from bigbatch.tasks.task import Splits

CONTEXT = 128
VOCAB_SIZE = 256  # bytes
MARGIN = 0.02


class Text:
    """Base of the language models over bytes: a sample is a window of 128, and its loss the mean of its positions.

    Args:
        data: A text file, or a folder of them; None looks for the Bible, see `bigbatch.tasks.data.text`.
    """

    metric: ClassVar[Metric] = Metric("loss", "nats per byte", "lower", margin=MARGIN)
    tokens_per_sample: ClassVar[int] = CONTEXT

    def __init__(self, data: str | Path | None = None) -> None:
        self._data = Path(data) if data else None
        self._bytes: Tensor | None = None

    def splits(self) -> Splits:
        """The first 90 % of the text, the next 5 % and the last 5 %, as windows of bytes.

        Raises:
            DataError: If there is no text, or too little.
        """
        return split_text(self._text(), context=CONTEXT)

    def _text(self) -> Tensor:
        if self._bytes is None:
            self._bytes = text_of(self._data)
        return self._bytes

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of each sample's positions, nats, shape (n,), in at least float32."""
        wide = outputs.flatten(0, 1).to(torch.promote_types(outputs.dtype, torch.float32))
        return F.cross_entropy(wide, targets.flatten().long(), reduction="none").view(targets.shape).mean(1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The losses."""
        return self.losses(outputs, targets)

    def vocabulary(self, size: int) -> int:
        """A model's number of tokens, checked against the text.

        Raises:
            DataError: If the text has a byte that is none of them.
        """
        if size < VOCAB_SIZE and (largest := int(self._text().max())) >= size:
            raise DataError(f"model.vocab_size = {size}: the text holds bytes up to {largest}; raise it, or leave it at {VOCAB_SIZE}")
        return size
