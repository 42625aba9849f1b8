"""What a comparison can be expected to say, before its runs and after the first of them: the power of its design, in words."""

import math
import statistics
from collections.abc import Sequence
from typing import TypeGuard

from bigbatch.core.extras import needed
from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.study.comparison.verdict import Design, power

with needed("the verdict of a study", extra="study"):
    from scipy import stats

ASSUMED_SPREAD = 0.6  # of the metric's margin: standard deviation of a run's score, where none is measured yet; 0.3 points of accuracy

POWER = 0.8
FEWEST_SEEDS = 3

LEAST_SPREAD = 2e-6  # of the metric's margin, for scores that are all equal


def expectation(design: Design, arms: Sequence[Sequence[float | None]], metric: Metric = ACCURACY) -> str:
    """How often "held" can be expected, in words: from the spread of the runs that exist, else from an assumed one.

    Args:
        design: Fixed beforehand.
        arms: Comparable scores by seed, the reference first; empty where there are no runs.
        metric: For the words, and for the assumed spread.
    """
    reference = arms[0] if arms else ()
    apart = [[a - b for a, b in zip(arm, reference, strict=False) if _is_number(a) and _is_number(b)] for arm in arms[1:]]
    pooled = [(statistics.variance(d), len(d) - 1) for d in apart if len(d) > 1]
    alone = [score for score in reference if _is_number(score)]
    if pooled:
        spread = math.sqrt(sum(v * df for v, df in pooled) / sum(df for _, df in pooled))
        source = f"the measured spread of their differences, {metric.length(spread, digits=2)}"
    elif len(alone) > 1:
        spread = math.sqrt(2) * statistics.stdev(alone)
        source = f"a spread of {metric.length(spread / math.sqrt(2), digits=2)}, measured on {len(alone)} runs of the reference"
    else:
        assumed = ASSUMED_SPREAD * metric.comparable_margin()
        spread, source = math.sqrt(2) * assumed, f"an assumed spread of {metric.length(assumed)}, for none is measured yet"
    chance = power(design, spread=max(spread, design.resolution, LEAST_SPREAD * metric.comparable_margin()))
    return (
        f"{design.seeds} to {design.max_seeds} seeds an arm, margin {metric.length(design.margin)}: of an arm as good as the reference, "
        f'"held" is said in {100 * chance.held:.0f} % of cases, after {chance.runs:.0f} seeds on average, with {source}; of one that '
        f"truly loses the margin in at most {100 * (1 - design.confidence):.0f} %"
        + ("" if design.max_seeds >= design.least_runs else f"; fewer than {design.least_runs} seeds can't exclude bad runs (--bad-share)")
    )


def seeds_asked_for(design: Design, reference: Sequence[float | None], metric: Metric = ACCURACY) -> tuple[int, str]:
    """Runs an arm before the first verdict, by the spread of the reference alone, and why, in words.

    So many that a paired t test of one look finds an arm as good as the reference to be within the margin in `POWER` of cases. Scores of
    the other arms play no part, so that choosing it costs no error.

    Args:
        design: With the most runs an arm.
        reference: Comparable scores of the reference's first runs; of fewer than two the spread is an assumed one.
        metric: For the words, and for the assumed spread.
    """
    scores = [score for score in reference if _is_number(score)]
    if len(scores) > 1:
        alone, source = statistics.stdev(scores), f"measured on {len(scores)} runs of the reference"
    else:
        alone, source = ASSUMED_SPREAD * metric.comparable_margin(), "assumed"
    least = max(design.resolution, LEAST_SPREAD * metric.comparable_margin())
    spread = max(math.sqrt(2) * alone, least)
    wanted = next((n for n in range(FEWEST_SEEDS, design.max_seeds) if _reaches(n, spread, design)), design.max_seeds)
    return (
        wanted,
        f"{wanted} seeds first: {100 * POWER:.0f} % power at a spread of {metric.length(spread / math.sqrt(2), digits=2)}, {source}",
    )


def _reaches(pairs: int, spread: float, design: Design) -> bool:
    """Whether so many pairs give the power."""
    quantiles = stats.t.ppf(design.confidence, pairs - 1) + stats.t.ppf(POWER, pairs - 1)
    return bool(quantiles * spread / math.sqrt(pairs) <= design.margin)


def _is_number(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)
