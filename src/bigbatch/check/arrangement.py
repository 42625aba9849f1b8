"""How one run of the loop is arranged: workers, micro-batches, and which suspects are removed."""

import math
from collections.abc import Collection
from typing import NamedTuple

SUSPECTS = (
    "interaction",
    "token_weighting",
    "mean_of_means",
    "no_all_reduce",
    "scale",
    "learning_rate",
    "scheduler",
    "clipping",
    "drop_last",
    "set_epoch",
    "batch_norm",
    "dropout",
)
"""What an experiment can remove from a run, the least specific first."""


class Arrangement(NamedTuple):
    """One global batch, cut into micro-batches over workers."""

    workers: int
    accumulation: int  # micro-batches of one worker in one update

    def __str__(self) -> str:
        workers = f"{self.workers} worker" + ("s" if self.workers > 1 else "")
        return f"{workers} x {self.accumulation} micro-batch" + ("es" if self.accumulation > 1 else "")


WHOLE = Arrangement(1, 1)
"""The reference: the whole batch in one forward pass of one worker."""


class Setup(NamedTuple):
    """Everything that a run is told.

    Attributes:
        arrangement: Workers and micro-batches.
        global_batch: Samples in one update over all workers.
        remainder: Samples in the last update of an epoch; 0 if it is whole.
        epochs: Passes over the samples.
        float64: Whether floating-point numbers have 64 bits; 32 otherwise.
        removed: Suspects that are removed from this run; of `SUSPECTS`.
        factor: Gradients are multiplied by it, where "scale" is removed.
        max_norm: Bound of gradient clipping in place of the loop's own; None to keep that.
        seed: Of all generators.
    """

    arrangement: Arrangement
    global_batch: int
    remainder: int
    epochs: int = 2
    float64: bool = True
    removed: frozenset[str] = frozenset()
    factor: float = 1.0
    max_norm: float | None = None
    seed: int = 0

    @property
    def num_samples(self) -> int:
        """Samples in an epoch: two updates, and a shorter third where "mean_of_means" is not removed."""
        return 2 * self.global_batch + (0 if "mean_of_means" in self.removed else self.remainder)

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass of one worker."""
        return self.global_batch // (self.arrangement.workers * self.arrangement.accumulation)


def arrangements(workers: Collection[int]) -> list[Arrangement]:
    """Whole batch first; then 2 and 4 micro-batches, each number of workers, and two workers (or the fewest) with 2 micro-batches each.

    >>> [tuple(a) for a in arrangements([1, 2, 4])]
    [(1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 2)]
    """
    several = sorted({n for n in workers if n > 1})
    return [WHOLE, Arrangement(1, 2), Arrangement(1, 4), *(Arrangement(n, 1) for n in several), *(Arrangement(n, 2) for n in several[:1])]


def batch_for(workers: Collection[int]) -> tuple[int, int]:
    """Global batch, and samples in the last update of an epoch: every worker gets as many, and its pieces of the latter are ragged.

    >>> batch_for([1, 2, 4]), batch_for([1, 3])
    ((24, 16), (72, 48))
    """
    common = math.lcm(4, *workers)
    return 6 * common, 4 * common
