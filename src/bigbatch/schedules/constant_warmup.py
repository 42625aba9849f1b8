r"""Constant warm-up: a low constant rate for some epochs, then a jump to the peak.

Paper:   Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, Section 2.2 "Constant warmup" (from He et al. 2016).
Formula: factor(s) = f for s < s_w samples, 1 after; f = 1/k is the unscaled base rate.
Units:   s, s_w in samples.
Differs: nowhere. The paper finds the jump harmful at large k (its Table 1: 25.88 % error against 23.74 % for the gradual ramp).
"""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from bigbatch.core.checks import check_fraction
from bigbatch.core.clock import Clock
from bigbatch.core.methods import WARMUPS
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Fraction, NotNegative
from bigbatch.recipe.sections import TimedWarmup
from bigbatch.schedules.compose import Schedule

PAPER = Paper(
    method="Constant warm-up",
    title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    authors="Goyal et al.",
    year=2017,
    arxiv="1706.02677",
    where="Section 2.2",
)


def constant_warmup(clock: Clock, *, warmup_samples: float, factor: float) -> float:
    """Fraction of the peak rate: `factor`, then 1.

    Args:
        clock: Where the run stands before the update.
        warmup_samples: Length of the warm-up in samples.
        factor: Fraction during the warm-up, in [0, 1].

    Returns:
        `factor` or 1.

    Raises:
        UserError: If `factor` is not in [0, 1].

    >>> [constant_warmup(Clock(samples=s), warmup_samples=100, factor=0.125) for s in (0, 99, 100)]
    [0.125, 0.125, 1.0]
    """
    check_fraction("factor", factor)
    return factor if clock.samples < warmup_samples else 1.0


class ConstantWarmupSection(TimedWarmup):
    """`factor` times the peak rate, then a jump to it."""

    kind: Literal["constant"] = "constant"
    epochs: NotNegative | None = None
    samples: Annotated[int, Field(ge=0)] | None = None
    updates: Annotated[int, Field(ge=0)] | None = None  # of the recipe's batch
    factor: Fraction


@WARMUPS.register("constant", ConstantWarmupSection)
def build(w: ConstantWarmupSection, recipe: Recipe) -> Schedule:
    """The recipe's warm-up."""
    return partial(constant_warmup, warmup_samples=recipe.warmup_samples, factor=w.factor)
