"""The decay of a rate turned into a larger batch: what `IncreaseBatch` and `Seesaw` have in common."""

import math
from typing import ClassVar, Literal

from bigbatch.batching.decision import BatchAndRate, Bounds, check_growing
from bigbatch.core.checks import check_fraction
from bigbatch.recipe.batch_rules import UpToLargest


def batch_at_decay(global_batch: int, decay: float, largest: int, multiple_of: int = 1) -> int:
    """The batch that stands for a decayed rate: min(B / f, B_max), rounded.

    Args:
        global_batch: B at the peak rate, samples.
        decay: f, fraction of the peak rate, in [0, 1].
        largest: B_max, samples.
        multiple_of: The batch is rounded to the nearest multiple of it within B and B_max.

    Raises:
        UserError: If `decay` is not in [0, 1].

    >>> [batch_at_decay(128, decay, 640) for decay in (1.0, 0.25, 0.1)]
    [128, 512, 640]
    """
    check_fraction("decay", decay)
    return Bounds(global_batch, largest, multiple_of).nearest(global_batch / decay if decay else math.inf)


class DecayToBatch:
    """A batch from the decay of any schedule, up to a largest one. Without state.

    Args:
        global_batch: At the peak rate, samples; a multiple of `multiple_of`.
        largest: Largest batch, samples.
        multiple_of: Batches are rounded to multiples of it, the largest downwards.

    Raises:
        UserError: If `global_batch` is no multiple of `multiple_of`, or `largest` is smaller.
    """

    def __init__(self, *, global_batch: int, largest: int, multiple_of: int = 1) -> None:
        check_growing(global_batch, largest, multiple_of)
        self.global_batch, self.largest, self.multiple_of = global_batch, largest, multiple_of

    def at(self, decay: float) -> BatchAndRate:
        """The batch, and the factor of the peak rate, where a schedule says `decay`.

        Raises:
            UserError: If `decay` is not in [0, 1].
        """
        raise NotImplementedError


class DecayToBatchSection(UpToLargest):
    """What a rule of a recipe that follows the decay of the rate has."""

    follows: ClassVar[Literal["decay", "clock"]] = "decay"
