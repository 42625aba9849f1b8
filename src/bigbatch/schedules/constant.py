"""Constant: the peak rate throughout. Formula: factor(s) = 1."""

from typing import Any, Literal

from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS, WARMUPS
from bigbatch.recipe.sections import DecaySection, WarmupSection
from bigbatch.schedules.compose import Schedule


def constant(clock: Clock) -> float:  # noqa: ARG001
    """Fraction of the peak rate: always 1.

    >>> constant(Clock(samples=7))
    1.0
    """
    return 1.0


class NoWarmupSection(WarmupSection):
    """Start at the peak rate."""

    kind: Literal["none"] = "none"


class ConstantSection(DecaySection):
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"


@WARMUPS.register("none", NoWarmupSection)
@DECAYS.register("constant", ConstantSection)
def build(_: NoWarmupSection | ConstantSection, __: Any) -> Schedule:
    """The recipe's schedule."""
    return constant
