"""Two copies of the weights from a warm-up, to go back to where the loss was lowest.

Ours, not the paper's (autowu.py), which sets only the rate back.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from bigbatch.core.checks import Diverged

T = TypeVar("T")


class Kept(Generic[T]):
    """The copy nearest to the minimum as it is known so far, and the newest: two copies of weights and optimizer state, no more.

    Args:
        save: Makes a copy, which later updates must not change.
        load: Goes back to one.

    >>> weights = [0.0]
    >>> kept = Kept(save=lambda: weights[0], load=lambda copy: weights.__setitem__(0, copy))
    >>> for samples in (0, 100, 200, 300):
    ...     weights[0] = samples / 100
    ...     kept.keep(samples, minimum=min(samples, 120))
    >>> [samples for samples, _ in kept.copies], kept.go_back(minimum=120), weights
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
        nearest = _nearest([*self.copies, newest], minimum)
        self.copies = [nearest] if nearest is newest else [nearest, newest]

    def go_back(self, minimum: float) -> int:
        """Load the copy nearest to the minimum and let go of all.

        Returns:
            The samples at which it was made.

        Raises:
            Diverged: If there is none.
        """
        if not self.copies:
            raise Diverged("no weights were kept to go back to; keep some from the start")
        samples, copy = _nearest(self.copies, minimum)
        self._load(copy)
        self.copies = []
        return samples


def _nearest(copies: Sequence[tuple[int, T]], minimum: float) -> tuple[int, T]:
    return min(copies, key=lambda copy: abs(copy[0] - minimum))
