r"""Warm-up-stable-decay: the peak rate for most of the run, and a short decay at its end.

Paper:   Haegele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, arXiv:2405.18392,
         Section 3 and Equation 1 (trapezoidal in Zhai et al. 2022; named WSD by Hu et al. 2024, MiniCPM, arXiv:2404.06395).
Formula: with S samples in all, of which the last D decay:   factor(s) = 1 for s <= S - D, and with t = (s - (S - D)) / D after it
             f + (1 - f) (1 - sqrt(t))            "sqrt", the paper's best
             f + (1 - f) (1 - t)                  "linear"
             f + (1 - f) (1 + cos(pi t)) / 2      "cosine"
Units:   s, S, D in samples. The paper finds D of 10 to 20 % of the run enough; a recipe's default is 20 %.
Differs: nowhere with f = 0. The warm-up is another schedule (gradual_warmup.py).
"""

import math
from functools import partial
from typing import Annotated, Literal, get_args

from pydantic import Field

from bigbatch.core.checks import UserError, check_fraction, check_positive, unknown
from bigbatch.core.clock import Clock
from bigbatch.core.methods import DECAYS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Fraction
from bigbatch.recipe.sections import DecaySection
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.span import Span

PAPER = Paper(
    method="Warm-up-stable-decay",
    title="Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
    authors="Hägele et al.",
    year=2024,
    arxiv="2405.18392",
    where="Section 3",
)
Shape = Literal["sqrt", "linear", "cosine"]


def wsd(clock: Clock, *, total_samples: float, decay_samples: float, shape: Shape = "sqrt", final_factor: float = 0.0) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        total_samples: S, at which the decay ends.
        decay_samples: D, at most S.
        shape: Of the decay.
        final_factor: Fraction at the end and after it, in [0, 1].

    Returns:
        A value in [final_factor, 1].

    Raises:
        UserError: If `total_samples` is not positive, `decay_samples` is not in (0, total_samples], `shape` is unknown or
            `final_factor` is not in [0, 1].

    >>> [wsd(Clock(samples=s), total_samples=100, decay_samples=20) for s in (0, 80, 85, 100)]
    [1.0, 1.0, 0.5, 0.0]
    """
    check_positive("total_samples", total_samples)
    check_fraction("final_factor", final_factor)
    if not 0 < decay_samples <= total_samples:
        raise UserError(f"decay_samples = {decay_samples:g}: must be above zero and at most total_samples = {total_samples:g}")
    t = min(1.0, max(0.0, (clock.samples - (total_samples - decay_samples)) / decay_samples))
    match shape:
        case "sqrt":
            left = 1 - math.sqrt(t)
        case "linear":
            left = 1 - t
        case "cosine":
            left = (1 + math.cos(math.pi * t)) / 2
        case _:
            raise UserError(unknown("shape", shape, get_args(Shape)))
    return final_factor + (1 - final_factor) * left


class WSDSection(DecaySection):
    """Warm-up-stable-decay: the peak rate, and a decay over the last part of the run, down to `final_factor`."""

    kind: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the run, warm-up included
    shape: Shape = "sqrt"  # sqrt: 1 - sqrt(t)
    final_factor: Fraction = 0.0


@DECAYS.register("wsd", WSDSection)
def build(d: WSDSection, span: Span) -> Schedule:
    """The recipe's decay."""
    length = min(d.decay_fraction * span.end, span.length)
    return span.place(partial(wsd, total_samples=span.length, decay_samples=length, shape=d.shape, final_factor=d.final_factor))
