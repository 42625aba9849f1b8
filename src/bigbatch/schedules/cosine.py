r"""Cosine decay: half a cosine, without restarts.

Paper:   Loshchilov and Hutter 2016, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983, Equation 5.
Formula: factor(s) = f + (1 - f) (1 + cos(pi s/S)) / 2.
Units:   s, S in samples.
Differs: no restarts (T_0 = the whole run); moves every update, not every epoch.
"""

import math
from functools import partial
from typing import Literal

from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Fraction
from bigbatch.recipe.sections import DecaySection
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.span import Span

PAPER = Paper(
    method="Cosine decay",
    title="SGDR: Stochastic Gradient Descent with Warm Restarts",
    authors="Loshchilov, Hutter",
    year=2016,
    arxiv="1608.03983",
    where="Equation 5",
)


def cosine(clock: Clock, *, total_samples: float, final_factor: float = 0.0) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        total_samples: Samples at which the decay ends.
        final_factor: Fraction at the end and after it, in [0, 1].

    Returns:
        A value in [final_factor, 1].

    Raises:
        UserError: If `total_samples` is not positive or `final_factor` is not in [0, 1].

    >>> [round(cosine(Clock(samples=s), total_samples=100), 6) for s in (0, 50, 100)]
    [1.0, 0.5, 0.0]
    """
    check_positive("total_samples", total_samples)
    check_fraction("final_factor", final_factor)
    progress = min(1.0, clock.samples / total_samples)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


class CosineSection(DecaySection):
    """Half a cosine from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


@DECAYS.register("cosine", CosineSection)
def build(d: CosineSection, span: Span) -> Schedule:
    """The recipe's decay."""
    return span.place(partial(cosine, total_samples=span.length, final_factor=d.final_factor))
