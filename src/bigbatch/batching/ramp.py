r"""A ramp of the batch: in a straight line by samples, from the first batch to the largest.

Paper:   Brown et al. 2020, Language Models are Few-Shot Learners, arXiv:2005.14165, Appendix B ("we gradually increase the batch size
         linearly from a small value ... to the full value over the first 4-12 billion tokens").
Formula: after s of S samples,  B(s) = B + (B_max - B) s / S,  rounded to a multiple of `multiple_of`, and B_max from S on;
         the rate is times sqrt(B(s) / B).
Units:   samples.
Differs: the paper does not say that its rate goes with the batch; `lr = "none"` leaves it alone.
"""

from typing import Literal

from bigbatch.batching.batch_steps import RateWithBatch, rate_factor
from bigbatch.batching.decision import BatchAndRate, Bounds, check_growing
from bigbatch.core.checks import check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count
from bigbatch.recipe.batch_rules import Scheduled

PAPER = Paper(
    method="Batch ramp",
    title="Language Models are Few-Shot Learners",
    authors="Brown et al.",
    year=2020,
    arxiv="2005.14165",
    where="Appendix B",
)


def ramped(samples: int, *, global_batch: int, largest: int, over_samples: int) -> float:
    """The batch after some samples, before it is rounded.

    >>> [ramped(samples, global_batch=64, largest=192, over_samples=1000) for samples in (0, 500, 2000)]
    [64.0, 128.0, 192.0]
    """
    return global_batch + (largest - global_batch) * min(1.0, samples / over_samples)


class Ramp:
    """The batch in a straight line. Without state.

    Args:
        global_batch: The first, samples; a multiple of `multiple_of`.
        largest: From `over_samples` on, samples.
        over_samples: Length of the ramp.
        multiple_of: Batches before the largest are rounded to multiples of it.
        lr: How the rate goes with the batch: "none", "linear" or "sqrt".

    Raises:
        UserError: If an argument is impossible.

    >>> Ramp(global_batch=64, largest=256, over_samples=1000, multiple_of=64).at(Clock(1000))
    BatchAndRate(global_batch=256, rate_factor=2.0)
    """

    def __init__(self, *, global_batch: int, largest: int, over_samples: int, multiple_of: int = 1, lr: RateWithBatch = "sqrt") -> None:
        check_growing(global_batch, largest, multiple_of)
        check_positive("over_samples", over_samples)
        self.global_batch, self.largest, self.over_samples, self.multiple_of, self.lr = global_batch, largest, over_samples, multiple_of, lr

    def at(self, clock: Clock) -> BatchAndRate:
        """The batch, and the factor of the schedule's rate, of the update at `clock`."""
        wanted = ramped(clock.samples, global_batch=self.global_batch, largest=self.largest, over_samples=self.over_samples)
        rounded = Bounds(self.global_batch, self.largest, self.multiple_of).nearest(wanted)
        batch = rounded if clock.samples < self.over_samples else self.largest
        return BatchAndRate(batch, rate_factor(batch, self.global_batch, self.lr))


class RampSection(Scheduled):
    """From the recipe's batch to `largest` in `over_samples` samples."""

    kind: Literal["ramp"] = "ramp"
    over_samples: Count
    largest: Count  # samples
    lr: RateWithBatch = "sqrt"

    @property
    def batches(self) -> tuple[int, ...]:
        """The last one."""
        return (self.largest,)

    @property
    def last_change_samples(self) -> int:
        """Where the ramp ends."""
        return self.over_samples


@BATCH_RULES.register("ramp", RampSection)
def build(rule: RampSection, _: Recipe, bounds: Bounds) -> Ramp:
    """The recipe's rule."""
    limits = {"global_batch": bounds.smallest, "largest": rule.largest, "multiple_of": bounds.multiple_of}
    return Ramp(over_samples=rule.over_samples, lr=rule.lr, **limits)
