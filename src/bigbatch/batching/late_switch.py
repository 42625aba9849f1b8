r"""Late switching: the small batch for most of the run, then the large one.

Paper:   Wang et al. 2026, Fast Catch-Up, Late Switching: Optimal Batch Size Scheduling via Functional Scaling Laws, arXiv:2602.14208:
         for hard tasks the best schedule of the batch, at fixed data, is small until late; the loss then catches up with that of
         the large batch fast.
Formula: the recipe's B for a share p of the run's samples, then B_max; the rate is times sqrt(B_max / B) from then on.
Units:   samples.
Differs: the paper finds p from the difficulty of the task, which is not known beforehand: here it is the recipe's. *Its abstract was read.*
"""

from typing import Annotated, Literal

from pydantic import Field

from bigbatch.batching.batch_steps import RateWithBatch, rate_factor
from bigbatch.batching.decision import BatchAndRate, Bounds, check_growing
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count
from bigbatch.recipe.batch_rules import Scheduled

PAPER = Paper(
    method="Late switching",
    title="Fast Catch-Up, Late Switching: Optimal Batch Size Scheduling via Functional Scaling Laws",
    authors="Wang et al.",
    year=2026,
    arxiv="2602.14208",
    where="the schedule for hard tasks",
)


def samples_before(after: float, total_samples: int) -> float:
    """Samples of the run before the switch: p of all.

    >>> samples_before(0.75, 1000)
    750.0
    """
    return after * total_samples


class LateSwitch:
    """Two batches, one after the other. Without state.

    Args:
        global_batch: The first, samples.
        largest: The second, samples.
        after: p, share of the run's samples before the switch, between 0 and 1.
        total_samples: Of the run.
        lr: How the rate goes with the batch: "none", "linear" or "sqrt".

    Raises:
        UserError: If an argument is impossible.

    >>> late = LateSwitch(global_batch=64, largest=256, after=0.75, total_samples=1000)
    >>> [tuple(late.at(Clock(samples))) for samples in (749, 750)]
    [(64, 1.0), (256, 2.0)]
    """

    def __init__(self, *, global_batch: int, largest: int, after: float, total_samples: int, lr: RateWithBatch = "sqrt") -> None:
        check_growing(global_batch, largest, 1)
        if not 0 < after < 1:
            raise UserError(f"after = {after}: must lie between 0 and 1, such as 0.7")
        self.global_batch, self.largest, self.after, self.total_samples, self.lr = global_batch, largest, after, total_samples, lr

    def at(self, clock: Clock) -> BatchAndRate:
        """The batch, and the factor of the schedule's rate, of the update at `clock`."""
        batch = self.global_batch if clock.samples < samples_before(self.after, self.total_samples) else self.largest
        return BatchAndRate(batch, rate_factor(batch, self.global_batch, self.lr))


class LateSwitchSection(Scheduled):
    """The recipe's batch, and `largest` after a share of the run."""

    kind: Literal["late"] = "late"
    after: Annotated[float, Field(gt=0, lt=1)]  # share of the run's samples
    largest: Count  # samples
    lr: RateWithBatch = "sqrt"

    @property
    def batches(self) -> tuple[int, ...]:
        """The second one."""
        return (self.largest,)


@BATCH_RULES.register("late", LateSwitchSection)
def build(rule: LateSwitchSection, recipe: Recipe, bounds: Bounds) -> LateSwitch:
    """The recipe's rule."""
    first, total = bounds.smallest, recipe.total_samples
    return LateSwitch(global_batch=first, largest=rule.largest, after=rule.after, total_samples=total, lr=rule.lr)
