r"""Did accuracy hold? A non-inferiority test of one arm against the reference.

Test:    Welch's t interval of the difference of means, d = mean(candidate) - mean(reference), seeds as independent samples.
Formula: se^2 = s_c^2/n_c + s_r^2/n_r,   df = se^4 / (s_c^4/(n_c^2 (n_c-1)) + s_r^4/(n_r^2 (n_r-1)))
         lower, upper = d -+ t_{confidence, df} se     (each bound one-sided at `confidence`)
         held: lower > -margin;   lost: upper < -margin;   undecided: neither, more seeds are needed.
Units:   those of the scores; margin is positive.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy import stats

from bigbatch.core.checks import UserError, check_positive


class Verdict(NamedTuple):
    """Outcome of the test; the bounds are None where there are too few runs to tell a spread."""

    outcome: Literal["held", "lost", "undecided"]
    difference: float  # mean of the candidate minus mean of the reference
    lower: float | None
    upper: float | None


def noninferiority(candidate: Sequence[float], reference: Sequence[float], *, margin: float, confidence: float = 0.95) -> Verdict:
    """Test whether the candidate's mean is at most `margin` below the reference's.

    Args:
        candidate: One score per seed.
        reference: One score per seed.
        margin: Largest loss that counts as none, > 0.
        confidence: Of each one-sided bound.

    Returns:
        The verdict; "undecided" with fewer than two runs in an arm.

    Raises:
        UserError: If `margin` is not positive or an arm is empty.

    >>> noninferiority([89.9, 90.1], [90.0, 90.2], margin=2.0).outcome
    'held'
    """
    check_positive("margin", margin)
    if not candidate or not reference:
        raise UserError(f"{len(candidate)} candidate and {len(reference)} reference runs: each arm needs one at least; run more seeds")
    difference = statistics.fmean(candidate) - statistics.fmean(reference)
    if min(len(candidate), len(reference)) < 2:
        return Verdict("undecided", difference, None, None)
    parts = [(statistics.variance(arm) / len(arm), len(arm) - 1) for arm in (candidate, reference)]
    sq_error = sum(part for part, _ in parts)
    half = 0.0
    if sq_error > 0:
        df = sq_error**2 / sum(part**2 / freedom for part, freedom in parts)
        half = float(stats.t.ppf(confidence, df)) * math.sqrt(sq_error)
    lower, upper = difference - half, difference + half
    outcome: Literal["held", "lost", "undecided"] = "held" if lower > -margin else "lost" if upper < -margin else "undecided"
    return Verdict(outcome, difference, lower, upper)
