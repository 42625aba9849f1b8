r"""Did accuracy hold? A non-inferiority test of one arm against the reference, with a number of runs that was fixed beforehand.

`bigbatch scale` goes on by seeds and uses `verdict`; the studies, which fixed theirs, use this.

Test:    Welch's t interval of the difference of means, d = mean(candidate) - mean(reference), seeds as independent samples.
Formula: se^2 = s_c^2/n_c + s_r^2/n_r,   df = se^4 / (s_c^4/(n_c^2 (n_c-1)) + s_r^4/(n_r^2 (n_r-1)))
         lower, upper = d -+ t_{confidence, df} se     (each bound one-sided at `confidence`)
         held: lower > -margin;   lost: upper < -margin;   undecided: neither, more seeds are needed.
         A variance is taken to be at least the resolution, squared: equal scores are equal to it only.
Units:   those of the scores, of which larger are better (`bigbatch.core.metric.Metric.comparable`); margin is positive.
Limits:  at 3 runs an arm, a margin of 0.5 and a spread of 0.3, "held" is said of equal arms in 44 % of cases (5: 76 %, 10: 97 %); of an arm
         that has bad runs now and then, which few runs don't show, it is said too often (benchmarks/verdict_error.py).
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.student import student_quantile

Outcome = Literal["held", "lost", "undecided"]


class Verdict(NamedTuple):
    """Outcome of the test; the bounds are None where there are too few runs to tell a spread."""

    outcome: Outcome
    difference: float  # mean of the candidate minus mean of the reference
    lower: float | None
    upper: float | None


def floored_spread(values: Sequence[float], resolution: float) -> tuple[float, bool]:
    """Standard deviation, or the resolution where that is larger, and whether it is; 0 for fewer than two values.

    >>> floored_spread([90.0, 90.0], 0.1)
    (0.1, True)
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return (resolution, True) if len(values) > 1 and spread < resolution else (spread, False)


def noninferiority(
    candidate: Sequence[float], reference: Sequence[float], *, margin: float, confidence: float = 0.95, resolution: float = 0.0
) -> Verdict:
    """Test whether the candidate's mean is at most `margin` below the reference's.

    Args:
        candidate: One score per seed, larger is better.
        reference: One score per seed.
        margin: Largest loss that counts as none, > 0.
        confidence: Of each one-sided bound.
        resolution: Of a score: one test sample; 0 if it is not known.

    Returns:
        The verdict; "undecided" with fewer than two runs in an arm, or where all scores of each arm are equal and no resolution is given.

    Raises:
        UserError: If `margin` is not positive, an arm is empty or a score is not finite.

    >>> noninferiority([89.9, 90.1], [90.0, 90.2], margin=2.0).outcome
    'held'
    """
    check_positive("margin", margin)
    if not candidate or not reference:
        raise UserError(f"{len(candidate)} candidate and {len(reference)} reference runs: each arm needs one at least; run more seeds")
    for name, arm in (("candidate", candidate), ("reference", reference)):
        check_finite(name, arm)
    difference = statistics.fmean(candidate) - statistics.fmean(reference)
    parts = [(floored_spread(arm, resolution)[0] ** 2 / len(arm), len(arm) - 1) for arm in (candidate, reference)]
    sq_error = sum(part for part, _ in parts)
    if min(len(candidate), len(reference)) < 2 or sq_error == 0:
        return Verdict("undecided", difference, None, None)
    df = sq_error**2 / sum(part**2 / freedom for part, freedom in parts)
    half = student_quantile(confidence, df) * math.sqrt(sq_error)
    lower, upper = difference - half, difference + half
    outcome: Outcome = "held" if lower > -margin else "lost" if upper < -margin else "undecided"
    return Verdict(outcome, difference, lower, upper)


def check_finite(arm: str, scores: Sequence[float | None]) -> None:
    """Refuse a score that is not a number; None stands for a run that diverged.

    Raises:
        UserError: Naming the arm and the run, counted from 0.
    """
    for number, score in enumerate(scores):
        if score is not None and not math.isfinite(score):
            raise UserError(f"score of {arm} run {number} = {score}: must be finite; see why the task's score is not a number")
