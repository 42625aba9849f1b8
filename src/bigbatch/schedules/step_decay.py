r"""Step decay: times a factor at each milestone.

Formula: factor(s) = gamma^(number of milestones m with m <= s).
Units:   milestones in samples.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bigbatch.core.checks import check_fraction
from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS
from bigbatch.recipe.base import Fraction, Positive
from bigbatch.recipe.sections import DecaySection
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.span import Span


def step_decay(clock: Clock, *, milestones: Sequence[float], factor: float = 0.1) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        milestones: Samples at which the rate drops, in any order.
        factor: What each drop multiplies by, in [0, 1].

    Returns:
        A power of `factor`.

    Raises:
        UserError: If `factor` is not in [0, 1].

    >>> [step_decay(Clock(samples=s), milestones=[100, 200], factor=0.5) for s in (99, 100, 200)]
    [1.0, 0.5, 0.25]
    """
    check_fraction("factor", factor)
    return float(factor ** sum(clock.samples >= m for m in milestones))


class StepDecaySection(DecaySection):
    """Times `factor` at each milestone."""

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[Positive, ...], Field(min_length=1)]  # epochs
    factor: Fraction = 0.1

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)} must ascend; sort them")
        return self


@DECAYS.register("step", StepDecaySection)
def build(d: StepDecaySection, span: Span) -> Schedule:
    """The recipe's decay; milestones count from the start of the run, also after a warm-up."""
    return partial(step_decay, milestones=[m * span.epoch for m in d.milestones], factor=d.factor)
