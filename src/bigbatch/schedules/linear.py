"""Linear decay: a straight line to zero. Formula: factor(s) = f + (1 - f) (1 - s/S); s, S in samples."""

from functools import partial
from typing import Literal

from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS
from bigbatch.recipe.base import Fraction
from bigbatch.recipe.sections import DecaySection
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.span import Span


def linear(clock: Clock, *, total_samples: float, final_factor: float = 0.0) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        total_samples: Samples at which the decay ends.
        final_factor: Fraction at the end and after it, in [0, 1].

    Returns:
        A value in [final_factor, 1].

    Raises:
        UserError: If `total_samples` is not positive or `final_factor` is not in [0, 1].

    >>> [linear(Clock(samples=s), total_samples=100, final_factor=0.5) for s in (0, 50, 100)]
    [1.0, 0.75, 0.5]
    """
    check_positive("total_samples", total_samples)
    check_fraction("final_factor", final_factor)
    return final_factor + (1 - final_factor) * max(0.0, 1 - clock.samples / total_samples)


class LinearSection(DecaySection):
    """Straight line from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["linear"] = "linear"
    final_factor: Fraction = 0.0


@DECAYS.register("linear", LinearSection)
def build(d: LinearSection, span: Span) -> Schedule:
    """The recipe's decay."""
    return span.place(partial(linear, total_samples=span.length, final_factor=d.final_factor))
