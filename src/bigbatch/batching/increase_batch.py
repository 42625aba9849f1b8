r"""Increase the batch instead of decaying the rate.

Paper:   Smith, Kindermans, Ying, Le 2017, Don't Decay the Learning Rate, Increase the Batch Size, arXiv:1711.00489, Sections 2 to 5.
Formula: temperature ("noise scale" in the paper), with rate e, momentum m, N training samples and a batch of B,
             g = e / (1 - m) (N / B - 1)
         a decay of the rate to f e becomes a batch of B / f up to B_max, and a decay of the rate from there on:
             B' = min(B / f, B_max),   rate factor f B' / B
         and a larger momentum becomes a larger first batch: B' = B (1 - m) / (1 - m').
Units:   batches and N in samples; g in samples times rate. The paper takes B_max near N / 10.
Differs: the rate factor uses the batch as it was rounded, so that rate / batch is exact at any rounding. The paper's starts have equal
         e N / (B (1 - m)), which is g for B much smaller than N; `temperature` is the whole formula.
Limits:  the accumulator of the momentum starts at zero and takes about B / (N (1 - m)) epochs to fill: a large B with a large m trains
         too little in the same epochs. Keep the samples of a normalisation group (ghost batch) while the batch grows.
"""

from typing import Literal

from bigbatch.batching.decay_to_batch import DecayToBatch, DecayToBatchSection, batch_at_decay
from bigbatch.batching.decision import BatchAndRate, Bounds
from bigbatch.core.checks import UserError
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe

PAPER = Paper(
    method="Increasing batch",
    title="Don't Decay the Learning Rate, Increase the Batch Size",
    authors="Smith et al.",
    year=2017,
    arxiv="1711.00489",
    where="Sections 2 to 5",
    study="studies/increase_batch",
)


def temperature(lr: float, num_train_samples: float, global_batch: float, momentum: float = 0.0) -> float:
    """The scale of the noise that the rate and the batch make.

    Args:
        lr: e, the rate.
        num_train_samples: N.
        global_batch: B, samples.
        momentum: m, from 0 to below 1.

    Returns:
        g = e / (1 - m) (N / B - 1); zero for the full batch.

    Raises:
        UserError: If `momentum` is not from 0 to below 1.

    >>> temperature(0.5, 1000, 100, momentum=0.5)
    9.0
    """
    _check_momentum("momentum", momentum)
    return lr / (1 - momentum) * (num_train_samples / global_batch - 1)


def batch_for_decay(global_batch: int, decay: float, largest: int, multiple_of: int = 1) -> BatchAndRate:
    """The batch that stands for a decayed rate, and the decay that is left for the rate.

    Args:
        global_batch: B at the peak rate, samples.
        decay: f, fraction of the peak rate, in [0, 1].
        largest: B_max, samples.
        multiple_of: The batch is rounded to the nearest multiple of it within B and B_max.

    Returns:
        min(B / f, B_max), rounded, and what the peak rate is multiplied by with that batch.

    Raises:
        UserError: If `decay` is not in [0, 1].

    >>> batch_for_decay(128, 0.25, 5120)
    BatchAndRate(global_batch=512, rate_factor=1.0)
    >>> batch_for_decay(128, 0.25, 256)
    BatchAndRate(global_batch=256, rate_factor=0.5)
    """
    batch = batch_at_decay(global_batch, decay, largest, multiple_of)
    return BatchAndRate(batch, decay * batch / global_batch)


def momentum_start(global_batch: float, momentum: float, new_momentum: float) -> float:
    """The first batch at another momentum: B (1 - m) / (1 - m'), samples.

    Raises:
        UserError: If a momentum is not from 0 to below 1.

    >>> momentum_start(640, 0.5, 0.75)
    1280.0
    """
    _check_momentum("momentum", momentum)
    _check_momentum("new_momentum", new_momentum)
    return global_batch * (1 - momentum) / (1 - new_momentum)


class IncreaseBatch(DecayToBatch):
    """Turns the decay of any schedule into a batch and the rest of the decay. Without state.

    Args:
        global_batch: At the peak rate, samples; a multiple of `multiple_of`.
        largest: Largest batch, samples; the paper takes about a tenth of the training set.
        multiple_of: Batches are rounded to multiples of it, the largest downwards.

    Raises:
        UserError: If `global_batch` is no multiple of `multiple_of`, or `largest` is smaller.

    >>> grow = IncreaseBatch(global_batch=128, largest=640)
    >>> [tuple(grow.at(decay)) for decay in (1.0, 0.2, 0.1)]
    [(128, 1.0), (640, 1.0), (640, 0.5)]
    """

    def at(self, decay: float) -> BatchAndRate:
        """The batch, and the factor of the peak rate, where a schedule says `decay`.

        Raises:
            UserError: If `decay` is not in [0, 1].
        """
        return batch_for_decay(self.global_batch, decay, self.largest, self.multiple_of)


def _check_momentum(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} = {value}: must lie from 0 to below 1; 0.9 is usual")


class IncreaseBatchSection(DecayToBatchSection):
    """Where the schedule's decay would lower the rate, the batch grows instead; what no longer fits `largest` lowers the rate."""

    kind: Literal["increase_batch"] = "increase_batch"


@BATCH_RULES.register("increase_batch", IncreaseBatchSection)
def build(_: IncreaseBatchSection, __: Recipe, bounds: Bounds) -> IncreaseBatch:
    """The recipe's rule."""
    return IncreaseBatch(global_batch=bounds.smallest, largest=bounds.largest, multiple_of=bounds.multiple_of)
