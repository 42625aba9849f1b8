r"""A schedule of batches: listed steps, each from so many samples on. Batch warm-up.

Paper:   Merrill et al. 2025, Critical Batch Size Revisited: A Simple Empirical Approach to Large-Batch Language Model Training,
         arXiv:2505.23971 ("batch size warmup").
Formula: from s_i samples on the batch is B_i, before s_1 the recipe's B; the rate is times sqrt(B_i / B), which is the paper's for Adam.
         The paper doubles where the critical batch, measured at checkpoints, has grown beyond the next batch.
Units:   samples.
Differs: the batches are the recipe's own; nothing is measured. `lr` may be "linear" (SGD) or "none" too.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from bigbatch.batching.decision import BatchAndRate, Bounds
from bigbatch.core.checks import UserError, check_positive, unknown
from bigbatch.core.clock import Clock
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count
from bigbatch.recipe.batch_rules import Scheduled

PAPER = Paper(
    method="Batch warm-up",
    title="Critical Batch Size Revisited: A Simple Empirical Approach to Large-Batch Language Model Training",
    authors="Merrill et al.",
    year=2025,
    arxiv="2505.23971",
    where="batch size warmup",
)
RateWithBatch = Literal["none", "linear", "sqrt"]
"""What the rate is multiplied by when the batch is k times the recipe's: 1, k, the root of k."""
POWERS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}


def rate_factor(global_batch: float, first: int, lr: str) -> float:
    """What the rate is multiplied by at a batch, samples, the recipe's being `first`.

    >>> [rate_factor(512, 128, how) for how in ("none", "linear", "sqrt")]
    [1.0, 4.0, 2.0]
    """
    return float((global_batch / first) ** POWERS[lr])


def check_ascending(steps: Sequence[tuple[int, int]]) -> None:
    """Refuse steps that are none, or out of order.

    Raises:
        UserError: If there is no step, or the samples do not ascend from above zero.
    """
    starts = [samples for samples, _ in steps]
    if not steps or starts != sorted(set(starts)) or starts[0] < 1:
        raise UserError(f"steps begin at {starts}: must be one step or more, at ascending numbers of samples above zero")


class BatchSteps:
    """The batch by listed steps. Without state.

    Args:
        global_batch: Before the first step, samples.
        steps: Pairs of samples seen and the batch from then on, the samples ascending.
        lr: How the rate goes with the batch: "none", "linear" or "sqrt".

    Raises:
        UserError: If there is no step, a number is not positive, or the samples do not ascend.

    >>> steps = BatchSteps(global_batch=128, steps=[(1000, 256), (4000, 512)])
    >>> [steps.at(Clock(samples)) for samples in (999, 1000, 9000)]  # doctest: +ELLIPSIS
    [BatchAndRate(global_batch=128, rate_factor=1.0), BatchAndRate(global_batch=256, rate_factor=1.41...), ...rate_factor=2.0)]
    """

    def __init__(self, *, global_batch: int, steps: Sequence[tuple[int, int]], lr: RateWithBatch = "sqrt") -> None:
        check_positive("global_batch", global_batch)
        if lr not in POWERS:
            raise UserError(unknown("lr", lr, POWERS))
        check_ascending(steps)
        for _, batch in steps:
            check_positive("steps: batch", batch)
        self.global_batch, self.steps, self.lr = global_batch, list(steps), lr

    def at(self, clock: Clock) -> BatchAndRate:
        """The batch, and the factor of the schedule's rate, of the update at `clock`."""
        batch = next((batch for samples, batch in reversed(self.steps) if clock.samples >= samples), self.global_batch)
        return BatchAndRate(batch, rate_factor(batch, self.global_batch, self.lr))


class BatchStepsSection(Scheduled):
    """Listed steps: [[samples, batch], ...]."""

    kind: Literal["schedule"] = "schedule"
    steps: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1)]  # none smaller than the recipe's batch
    lr: RateWithBatch = "sqrt"

    @property
    def batches(self) -> tuple[int, ...]:
        """The listed ones."""
        return tuple(batch for _, batch in self.steps)

    @property
    def last_change_samples(self) -> int:
        """Where the last step is."""
        return self.steps[-1][0]

    def check_recipe(self, recipe: Any) -> None:
        """Refuse steps out of order, too."""
        try:
            check_ascending(self.steps)
        except UserError as error:
            raise ValueError(f"batch.rule: {error}") from None
        super().check_recipe(recipe)


@BATCH_RULES.register("schedule", BatchStepsSection)
def build(rule: BatchStepsSection, recipe: Recipe, _: Bounds) -> BatchSteps:
    """The recipe's rule."""
    return BatchSteps(global_batch=recipe.batch.global_batch, steps=rule.steps, lr=rule.lr)
