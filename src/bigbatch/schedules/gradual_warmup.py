r"""Gradual warm-up: a straight line, per update, from a fraction of the peak rate to the peak rate.

Paper:   Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, Section 2.2 "Gradual warmup".
Formula: factor(s) = f0 + (1 - f0) s / s_w   for s < s_w samples, 1 after; f0 = 1/k starts at the unscaled base rate.
Units:   s, s_w in samples, so a batch that changes inside the ramp does not move it.
Differs: nowhere with f0 = 1/k. LEGW (scaling/rules/legw.py) uses the same line from f0 = 0.
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
    method="Gradual warm-up",
    title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    authors="Goyal et al.",
    year=2017,
    arxiv="1706.02677",
    where="Section 2.2",
)


def gradual_warmup(clock: Clock, *, warmup_samples: float, start_factor: float = 0.0) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        warmup_samples: Length of the ramp in samples; 0 for none.
        start_factor: Fraction at the first update, in [0, 1]. 0 means that the first update does not move the weights.

    Returns:
        A value in [start_factor, 1].

    Raises:
        UserError: If `start_factor` is not in [0, 1].

    >>> [gradual_warmup(Clock(samples=s), warmup_samples=100, start_factor=0.25) for s in (0, 50, 100, 200)]
    [0.25, 0.625, 1.0, 1.0]
    """
    check_fraction("start_factor", start_factor)
    if clock.samples >= warmup_samples:
        return 1.0
    return start_factor + (1 - start_factor) * clock.samples / warmup_samples


class GradualWarmupSection(TimedWarmup):
    """Straight line from `start_factor` times the peak rate to the peak rate."""

    kind: Literal["gradual"] = "gradual"
    epochs: NotNegative | None = None
    samples: Annotated[int, Field(ge=0)] | None = None
    updates: Annotated[int, Field(ge=0)] | None = None  # of the recipe's batch
    start_factor: Fraction = 0.0


@WARMUPS.register("gradual", GradualWarmupSection)
def build(w: GradualWarmupSection, recipe: Recipe) -> Schedule:
    """The recipe's warm-up."""
    return partial(gradual_warmup, warmup_samples=recipe.warmup_samples, start_factor=w.start_factor)
