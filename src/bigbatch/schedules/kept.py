"""Two copies of the weights from a warm-up, to go back to where the loss was lowest.

Ours, not the paper's (autowu.py), which sets only the rate back.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from bigbatch.core.checks import Diverged

T = TypeVar("T")


class Kept(Generic[T]):
    """The last copy before the minimum as it is known so far, and the newest: two copies of weights and optimizer state, no more.

    Not the nearest: right after a minimum, weights may be beyond repair.

    Args:
        save: Makes a copy, which later updates must not change.
        load: Goes back to one.

    >>> weights = [0.0]
    >>> kept = Kept(save=lambda: weights[0], load=lambda copy: weights.__setitem__(0, copy))
    >>> for samples in (0, 100, 200, 300):
    ...     weights[0] = samples / 100
    ...     kept.keep(samples, minimum=min(samples, 190))
    >>> [samples for samples, _ in kept.copies], kept.go_back(minimum=190), weights
    ([100, 300], 100, [1.0])
    """

    def __init__(self, save: Callable[[], T], load: Callable[[T], None]) -> None:
        self._save, self._load = save, load
        self.copies: list[tuple[int, T]] = []  # samples on the clock, copy

    def keep(self, samples: int, minimum: float) -> None:
        """Copy what there is now.

        Args:
            samples: On the clock now.
            minimum: Where the loss was lowest, as far as is known; samples.
        """
        newest = (samples, self._save())
        last = _last([*self.copies, newest], minimum)
        self.copies = [last] if last is newest else [last, newest]

    def go_back(self, minimum: float) -> int:
        """Load the last copy at or before the minimum, else the earliest; let go of all.

        Returns:
            The samples at which it was made.

        Raises:
            Diverged: If there is none.
        """
        if not self.copies:
            raise Diverged("no weights were kept to go back to; keep some from the start")
        samples, copy = _last(self.copies, minimum)
        self._load(copy)
        self.copies = []
        return samples


def _last(copies: Sequence[tuple[int, T]], minimum: float) -> tuple[int, T]:
    before = [copy for copy in copies if copy[0] <= minimum]
    return before[-1] if before else copies[0]
