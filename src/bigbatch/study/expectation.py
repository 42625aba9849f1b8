"""What a comparison can be expected to say, before its runs and after the first of them: the power of its design, in words."""

import math
import statistics
from collections.abc import Sequence
from typing import TypeGuard

from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.study.verdict import Design, power

ASSUMED_SPREAD = 0.6  # of the metric's margin: standard deviation of a run's score, where none is measured yet; 0.3 points of accuracy

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


def _is_number(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)
