r"""Polynomial decay, of power 2 as LARS uses it.

Paper:   You, Gitman, Ginsburg 2017, Large Batch Training of Convolutional Networks, arXiv:1708.03888, Section 5 (poly policy, power 2).
Formula: factor(s) = f + (1 - f) (1 - s/S)^p,  p = 2; f after the end.
Units:   s, S in samples.
Differs: nowhere with f = 0. Counts from the start of the run; MLPerf's version counts from the end of the warm-up.
"""

from functools import partial
from typing import Literal

from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Fraction, Positive
from bigbatch.recipe.sections import DecaySection
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.span import Span

PAPER = Paper(
    method="Polynomial decay",
    title="Large Batch Training of Convolutional Networks",
    authors="You, Gitman, Ginsburg",
    year=2017,
    arxiv="1708.03888",
    where="Section 5",
)


def polynomial(clock: Clock, *, total_samples: float, power: float = 2.0, final_factor: float = 0.0) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        total_samples: Samples at which the decay ends.
        power: Exponent; 2 in the paper, 1 for a straight line.
        final_factor: Fraction at the end and after it, in [0, 1].

    Returns:
        A value in [final_factor, 1].

    Raises:
        UserError: If `total_samples` is not positive or `final_factor` is not in [0, 1].

    >>> [polynomial(Clock(samples=s), total_samples=100) for s in (0, 50, 100)]
    [1.0, 0.25, 0.0]
    """
    check_positive("total_samples", total_samples)
    check_fraction("final_factor", final_factor)
    left = max(0.0, 1 - clock.samples / total_samples)
    return float(final_factor + (1 - final_factor) * left**power)


class PolynomialSection(DecaySection):
    """(1 - t/T)^power from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["polynomial"] = "polynomial"
    power: Positive = 2.0
    final_factor: Fraction = 0.0


@DECAYS.register("polynomial", PolynomialSection)
def build(d: PolynomialSection, span: Span) -> Schedule:
    """The recipe's decay."""
    return span.place(partial(polynomial, total_samples=span.length, power=d.power, final_factor=d.final_factor))
