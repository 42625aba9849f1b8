"""Samples of a stream (an `IterableDataset` with a length) by their place in an epoch: read in order, what is not wanted is skipped.

Every worker reads the whole stream and takes its share of each update, so the stream must give the same samples in the same order to all
workers, and again when a run is resumed: it then skips to where the run stands. A new epoch begins the stream anew.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from bigbatch.core.checks import DataError
from bigbatch.tasks.optional_parts import Collated

RECENT = 2
"""Samples that are remembered: those of an idle pass, which are the first of an update."""


def is_stream(dataset: Dataset[Any]) -> bool:
    """Whether samples can only be read in order."""
    return isinstance(_plain(dataset), IterableDataset)


def has_length(dataset: Dataset[Any]) -> bool:
    """Whether a data set says how many samples it has."""
    return hasattr(_plain(dataset), "__len__")


def seed_of_order(dataset: Dataset[Any], seed: int) -> int | None:
    """The seed of `sample_indices`: None for a stream, whose order is its own."""
    return None if is_stream(dataset) else seed


class StreamReader:
    """Reads places in ascending order; a place before the last one is of the next epoch.

    Args:
        dataset: A stream.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = _plain(dataset)
        self._samples: Iterator[Any] = iter(self._dataset)
        self._place = 0  # of the next sample
        self._recent: deque[tuple[int, Any]] = deque(maxlen=RECENT)

    def read(self, index: Tensor) -> list[Any]:
        """The samples at some places.

        Raises:
            DataError: If the stream ends before its stated length.
        """
        return [self._at(place) for place in index.tolist()]

    def _at(self, place: int) -> Any:
        for known, sample in self._recent:
            if known == place:
                return sample
        if place < self._place:
            self._samples, self._place = iter(self._dataset), 0
            self._recent.clear()
        sample = None
        while self._place <= place:
            try:
                sample = next(self._samples)
            except StopIteration:
                raise DataError(
                    f"data set {type(self._dataset).__name__}: ended after {self._place:,} samples, and its len() is "
                    f"{len(self._dataset):,}: must give as many as it says; correct its __len__"
                ) from None
            self._recent.append((self._place, sample))
            self._place += 1
        return sample


def _plain(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, Collated) else dataset
