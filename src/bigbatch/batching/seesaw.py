r"""Seesaw: where the rate would decay by a factor, the rate decays by its root, and the batch grows by the factor.

Paper:   Meterez et al. 2025, Seesaw: Accelerating Training by Balancing Learning Rate and Batch Size Scheduling, arXiv:2510.14717.
Formula: where the schedule says a fraction f of the peak rate, at a first batch of B and up to B_max,
             B' = min(B / f, B_max),   rate factor f sqrt(B' / B)
         which is sqrt(f) while the batch grows: rate / sqrt(batch), on which normalised SGD and Adam depend where noise is most of the
         gradient, is that of the run of fixed batch.
Units:   batches in samples.
Differs: the paper's steps are of a fixed factor, such as the halving that its abstract names; here the decay is followed as it goes, in
         multiples of `multiple_of`. Beyond B_max the rate takes the rest of the decay. For SGD see `increase_batch`, which keeps
         rate / batch.
Limits:  for batches up to the critical one; beyond it more samples an update buy nothing. With Muon: studies/README.md.
"""

import math
from typing import Literal

from bigbatch.batching.decay_to_batch import DecayToBatch, DecayToBatchSection, batch_at_decay
from bigbatch.batching.decision import BatchAndRate, Bounds
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe

PAPER = Paper(
    method="Seesaw",
    title="Seesaw: Accelerating Training by Balancing Learning Rate and Batch Size Scheduling",
    authors="Meterez et al.",
    year=2025,
    arxiv="2510.14717",
    where="the rule of the abstract",
)


def seesaw(global_batch: int, decay: float, largest: int, multiple_of: int = 1) -> BatchAndRate:
    """The batch and the rate that stand for a decayed rate.

    Args:
        global_batch: B at the peak rate, samples.
        decay: f, fraction of the peak rate, in [0, 1].
        largest: B_max, samples.
        multiple_of: The batch is rounded to the nearest multiple of it within B and B_max.

    Returns:
        min(B / f, B_max), rounded, and what the peak rate is multiplied by with that batch.

    Raises:
        UserError: If `decay` is not in [0, 1].

    >>> seesaw(128, 0.25, 5120)
    BatchAndRate(global_batch=512, rate_factor=0.5)
    >>> seesaw(128, 0.25, 128)
    BatchAndRate(global_batch=128, rate_factor=0.25)
    """
    batch = batch_at_decay(global_batch, decay, largest, multiple_of)
    return BatchAndRate(batch, decay * math.sqrt(batch / global_batch))


class Seesaw(DecayToBatch):
    """Turns the decay of any schedule into a batch and a milder decay. Without state.

    Args:
        global_batch: At the peak rate, samples; a multiple of `multiple_of`.
        largest: Largest batch, samples: the critical batch, if it is known.
        multiple_of: Batches are rounded to multiples of it, the largest downwards.

    Raises:
        UserError: If `global_batch` is no multiple of `multiple_of`, or `largest` is smaller.

    >>> Seesaw(global_batch=128, largest=640).at(0.25)
    BatchAndRate(global_batch=512, rate_factor=0.5)
    """

    def at(self, decay: float) -> BatchAndRate:
        """The batch, and the factor of the peak rate, where a schedule says `decay`.

        Raises:
            UserError: If `decay` is not in [0, 1].
        """
        return seesaw(self.global_batch, decay, self.largest, self.multiple_of)


class SeesawSection(DecayToBatchSection):
    """Where the schedule's decay would lower the rate by a factor, the batch grows by it, and the rate falls by its root."""

    kind: Literal["seesaw"] = "seesaw"


@BATCH_RULES.register("seesaw", SeesawSection)
def build(_: SeesawSection, __: Recipe, bounds: Bounds) -> Seesaw:
    """The recipe's rule."""
    return Seesaw(global_batch=bounds.smallest, largest=bounds.largest, multiple_of=bounds.multiple_of)
