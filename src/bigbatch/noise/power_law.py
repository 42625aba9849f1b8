r"""The critical batch at a larger size, from those of several smaller ones: a power law.

Paper:   Zhang et al. 2024, How Does Critical Batch Size Scale in Pre-training?, arXiv:2410.21676: 22.91 D^0.47, by the data D, hardly by
         the size of the model. Bergsma et al. 2025, Power Lines, arXiv:2505.13738 find D^0.462.
Formula: B(D) = a D^p,  so that  y = log B = log a + p x,  x = log D; fitted by least squares with weights
             w_i = 1 / (s_i^2 + tau^2)
         s_i: of the point itself, half of its 95 % interval in log over 1.96; tau: of the scatter of points around the law, from
             sum_i w_i r_i^2 = n - 2        (r_i: residuals; Paule and Mandel), or 0 where the s_i alone explain the scatter.
         A prediction, for a point like these (s^2 the mean of the s_i^2, W the sum of weights, m their mean of x):
             q^2 = s^2 + tau^2 + 1/W + (x - m)^2 / sum_i w_i (x_i - m)^2
             y +- q max(z, t_{n-2} sqrt(sum_i w_i r_i^2 / (n - 2)))
         the larger of what the points' own intervals say (z, of the normal) and what the scatter says (t, Student's). Without intervals
         s_i = 0: ordinary least squares, and the textbook's prediction interval.
Units:   D in samples or tokens, or parameters of models; B in what the critical batches are in.
Differs: the paper fits curves of many runs, and takes for critical the batch that needs 20 % more than its share of steps; any measure
         serves here, if it is the same at all sizes. Intervals and weights are ours.
Limits:  three sizes are few: t_1 = 12.7. The intervals of points are taken as normal in log, and are wider where runs are few, so the
         result errs on the wide side. That the law holds further on is assumed. A point that is only a lower bound is left out, which
         makes the law too low.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.paper import Paper
from bigbatch.core.student import student_quantile
from bigbatch.noise.critical_batch import Estimate
from bigbatch.noise.estimate import two_digits

PAPER = Paper(
    method="Power law of the critical batch",
    title="How Does Critical Batch Size Scale in Pre-training?",
    authors="Zhang et al.",
    year=2024,
    arxiv="2410.21676",
    where="scaling laws of the critical batch size",
)
FEWEST = 3
"""Sizes: a factor, a power and a scatter."""
FAR = 4.0
"""Times the largest size measured: beyond it a prediction is warned of."""
POINT_Z = NormalDist().inv_cdf(0.975)
STEPS = 200
"""Of the bisection for tau^2, which halves its logarithm's range each time."""


class SizedBatch(NamedTuple):
    """A critical batch that was measured at one size."""

    size: float  # D
    critical_batch: float  # B; infinity for "at least `lower`"
    lower: float = math.nan  # of its 95 % interval; NaN where that is not known
    upper: float = math.nan

    @property
    def deviation(self) -> float:
        """s_i, of log B; NaN where an end of the interval is not known, zero or infinite."""
        known = 0 < self.lower <= self.upper < math.inf
        return (math.log(self.upper) - math.log(self.lower)) / (2 * POINT_Z) if known else math.nan


class Prediction(NamedTuple):
    """What a law says of a size."""

    size: float
    critical_batch: Estimate  # with the interval of a measurement at this size
    times: float  # the size in largest sizes measured
    warning: str  # why to doubt it; empty for nothing


class _Line(NamedTuple):
    """A straight line, fitted."""

    intercept: float  # at the mean
    slope: float
    mean: float  # m
    weight: float  # W, infinite on points without scatter
    spread: float  # sum_i w_i (x_i - m)^2
    misfit: float  # sum_i w_i r_i^2


@dataclass(frozen=True)
class PowerLaw:
    """B(D) = factor D^power.

    Attributes:
        factor: a, in the units of the points.
        power: p, with its interval.
        scatter: tau, of log B around the law, beyond the points' own intervals; 0.1 is about 10 %.
        points: Those that were fitted, by size.
        weighted: Whether the points' own intervals weigh them.
        notes: What was left out, and what weighs, in words.
        confidence: Of each interval.
    """

    factor: float
    power: Estimate
    scatter: float
    points: tuple[SizedBatch, ...]
    weighted: bool
    notes: tuple[str, ...]
    confidence: float
    _line: _Line
    _own: float  # mean of s_i^2
    _times: float  # of standard deviations in half an interval

    def at(self, size: float) -> Prediction:
        """The critical batch at a size, with the interval in which a measurement there lies.

        Args:
            size: D, in the unit of the points.

        Raises:
            UserError: If it is not positive.
        """
        check_positive("size", size)
        line, x = self._line, math.log(size)
        y = line.intercept + line.slope * (x - line.mean)
        variance = self._own + self.scatter**2 + 1 / line.weight + (x - line.mean) ** 2 / line.spread
        half = self._times * math.sqrt(variance)
        times = size / self.points[-1].size
        warning = ""
        if times > FAR:
            warning = (
                f"{times:.3g} times the largest size measured, {plain_size(self.points[-1].size)}: beyond {FAR:g} times a power law of few "
                "points is a guess, whatever its interval; measure once at a size between"
            )
        return Prediction(size, Estimate(_exp(y), _exp(y - half), _exp(y + half)), times, warning)


def fit_power_law(points: Sequence[SizedBatch], confidence: float = 0.95) -> PowerLaw:
    """Fit B(D) = a D^p.

    Args:
        points: One a size, three at least. Where each has its interval, these weigh; else all count alike.
        confidence: Of each interval, in (0, 1).

    Raises:
        UserError: If fewer than three sizes have a finite critical batch, two sizes are equal, or a number is not positive.

    >>> law = fit_power_law([SizedBatch(1e4, 210), SizedBatch(1e6, 1900), SizedBatch(1e8, 21_000)])
    >>> round(law.power.value, 3), round(law.at(4e8).critical_batch.value)
    (0.5, 40622)
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence = {confidence}: must lie between 0 and 1; 0.95 is usual")
    used, notes = _usable(points)
    own = [point.deviation for point in used]
    weighted = not any(math.isnan(s) for s in own) and min(own) > 0
    if not weighted and not all(math.isnan(s) for s in own):
        notes.append("not every point has an interval with two ends: all count alike")
    x, y = [math.log(point.size) for point in used], [math.log(point.critical_batch) for point in used]
    own_squares, degrees = [s * s if weighted else 0.0 for s in own], len(used) - 2
    scatter = _scatter(x, y, own_squares)
    line = _fit(x, y, [s + scatter for s in own_squares])
    factor = line.misfit / degrees if line.weight < math.inf else 0.0
    z = NormalDist().inv_cdf((1 + confidence) / 2) if weighted else 0.0
    times = max(z, student_quantile((1 + confidence) / 2, degrees) * math.sqrt(factor))
    half = times / math.sqrt(line.spread)
    mean = sum(own_squares) / len(own_squares)
    power = Estimate(line.slope, line.slope - half, line.slope + half)
    at_one = _exp(line.intercept - line.slope * line.mean)
    return PowerLaw(at_one, power, math.sqrt(scatter), tuple(used), weighted, tuple(notes), confidence, line, mean, times)


def _usable(points: Sequence[SizedBatch]) -> tuple[list[SizedBatch], list[str]]:
    """The points with a finite critical batch, by size, and what is said of the others."""
    for point in points:
        check_positive("size", point.size)
        if point.critical_batch != math.inf:
            check_positive("critical_batch", point.critical_batch, "measure at smaller batches")
    sizes = sorted(point.size for point in points)
    for size, after in itertools.pairwise(sizes):
        if size == after:
            raise UserError(f"size = {plain_size(size)}: stands there twice; give each size once, its seeds in one measurement")
    used = sorted(point for point in points if point.critical_batch < math.inf)
    notes = [
        f"size {plain_size(point.size)} has no upper end"
        + (f", only at least {two_digits(point.lower)}" if point.lower > 0 else "")
        + ": left out, so the law may lie too low; measure there at larger batches"
        for point in sorted(points)
        if point.critical_batch == math.inf
    ]
    if len(used) < FEWEST:
        raise UserError(
            f"{len(used)} of {len(points)} sizes have a finite critical batch: a factor, a power and a scatter need {FEWEST} different "
            "ones at least; measure at more sizes"
        )
    return used, notes


def _fit(x: Sequence[float], y: Sequence[float], variances: Sequence[float]) -> _Line:
    """Weighted least squares; where no variance is known, of weights that are alike and infinite."""
    exact = max(variances) == 0
    weights = [1.0 if exact else 1 / v for v in variances]
    total = sum(weights)
    mean, intercept = (sum(w * v for w, v in zip(weights, values, strict=True)) / total for values in (x, y))
    spread = sum(w * (a - mean) ** 2 for w, a in zip(weights, x, strict=True))
    slope = sum(w * (a - mean) * (b - intercept) for w, a, b in zip(weights, x, y, strict=True)) / spread
    misfit = sum(w * (b - intercept - slope * (a - mean)) ** 2 for w, a, b in zip(weights, x, y, strict=True))
    return _Line(intercept, slope, mean, math.inf if exact else total, math.inf if exact else spread, misfit)


def _scatter(x: Sequence[float], y: Sequence[float], own: Sequence[float]) -> float:
    """tau^2, so that the weighted squares of residuals add up to n - 2; 0 where they are fewer without it."""
    degrees = len(x) - 2
    alike = _fit(x, y, [1.0] * len(x)).misfit / degrees
    if max(own) == 0:
        return alike
    if _fit(x, y, own).misfit <= degrees:
        return 0.0
    low, high = 0.0, alike
    while _fit(x, y, [s + high for s in own]).misfit > degrees:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _fit(x, y, [s + middle for s in own]).misfit > degrees else (low, middle)
    return high


def _exp(value: float) -> float:
    """Infinity beyond what a number holds."""
    return math.exp(value) if value < 700 else math.inf


def plain_size(size: float) -> str:
    """A size in words, in all its digits as long as it can be read.

    >>> [plain_size(size) for size in (0.5, 55000.0, 1.7e9, 1e20)]
    ['0.5', '55,000', '1,700,000,000', '1e+20']
    """
    return f"{size:,.0f}" if 1000 <= size < 1e15 else f"{size:g}"
