r"""A ratio of two means with its confidence interval, from updates that depend on each other.

Method:  ratio of means over updates; the long-run covariance of the two means from the means of at most 20 contiguous blocks, prewhitened
         by a first-order autoregression of x - R y over the blocks, phi, with the small-sample bias taken off (Andrews and Monahan 1992,
         https://doi.org/10.2307/2951574; Kendall 1954: phi + (1 + 3 phi) / blocks); the interval by Fieller's theorem: all R with
         |x - R y| <= t se(x - R y), t of Student with blocks (1 - phi) / (1 + phi) - 1 degrees of freedom.
Why:     the ratio of each update is far off, and the mean of ratios has no expectation; the delta method is Fieller's limit for a
         denominator that is far from zero, and fails near zero, where the noise scale is often wanted. Near zero Fieller's interval is
         open upwards: "at least", which is what the data say.
Limits:  benchmarks/interval_coverage.py has the coverage. Updates that stay alike for longer than a tenth of the run leave few that are
         independent: `doubt_of` says so where the data show it, and the interval is then one of these updates, not of the run to come.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.core.checks import UserError, check_fraction
from bigbatch.core.student import fisher_tail, student_quantile

MOST_BLOCKS, FEWEST_BLOCKS = 20, 10
"""Blocks of updates; below so many nothing is said of how they depend on each other."""
DRIFT_BLOCKS = 6


class Interval(NamedTuple):
    """A ratio and its bounds; infinity where the data give no upper bound, NaN where they give none at all."""

    value: float  # NaN where the mean of the denominator is not positive
    lower: float
    upper: float


def block_means(values: ArrayLike, num_blocks: int) -> np.ndarray:
    """Means of contiguous blocks of nearly equal length.

    Args:
        values: Shape (n, columns).
        num_blocks: At most n.

    Returns:
        Shape (num_blocks, columns).
    """
    return np.stack([block.mean(axis=0) for block in np.array_split(np.asarray(values, dtype=float), num_blocks)])


def ratio_of_means(numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """mean(numerators) / mean(denominators) of quantities whose ratio can't be negative.

    Args:
        numerators: Shape (n,), in the order in time.
        denominators: Shape (n,).
        confidence: Of the two-sided interval.

    Returns:
        The ratio with its interval, cut at zero. With fewer than three values there is no interval (NaN).

    Raises:
        UserError: If the lengths differ or there are no values.

    >>> value, lower, upper = ratio_of_means([7.0, 9.0, 8.0, 8.0], [1.0, 1.0, 1.1, 0.9])
    >>> value, round(lower, 2), round(upper, 2)
    (8.0, 6.45, 9.82)
    """
    check_fraction("confidence", confidence)
    x, y = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) == 0:
        raise UserError(f"{x.shape} numerators and {y.shape} denominators: must be as many, and one at least")
    mean_x, mean_y = float(x.mean()), float(y.mean())
    value = max(mean_x / mean_y, 0.0) if mean_y > 0 else float("nan")
    if len(x) < 3:
        return Interval(value, float("nan"), float("nan"))
    num_blocks = min(len(x), MOST_BLOCKS)
    blocks = block_means(np.stack([x, y], axis=1), num_blocks)
    blocks -= blocks.mean(axis=0)
    phi = _autocorrelation(blocks @ (1.0, -value)) if num_blocks >= FEWEST_BLOCKS and mean_y > 0 else 0.0
    white = np.concatenate([(1 - phi**2) ** 0.5 * blocks[:1], blocks[1:] - phi * blocks[:-1]])
    degrees = num_blocks * (1 - phi) / (1 + phi) - 1
    (xx, xy), (_, yy) = (white.T @ white / ((len(white) - 1) * (1 - phi) ** 2 * num_blocks)).tolist()
    t = student_quantile(0.5 + confidence / 2, max(degrees, 1.0))
    return Interval(value, *_fieller(mean_x, mean_y, t * t * xx, t * t * xy, t * t * yy))


def _autocorrelation(z: np.ndarray) -> float:
    """Of neighbours, at least 0 and below 1, with the bias of a short series taken off."""
    power = float(z @ z)
    phi = float(z[1:] @ z[:-1]) / power if power > 0 else 0.0
    return min(max(phi + (1 + 3 * phi) / len(z), 0.0), 0.97)


def doubt_of(numerators: ArrayLike, denominators: ArrayLike) -> str:
    """What speaks against the interval of `ratio_of_means`, in a word or two; "" for nothing.

    "drifts": the means of six blocks of updates lie further apart than updates within them explain (one-sided F test at 5 %), so that
    others than these updates may have another ratio. "heavy tails": one update makes a third of the variance, so that few decide.

    Args:
        numerators: Shape (n,), in the order in time.
        denominators: Shape (n,).

    >>> steady = [8.0, 9.0, 7.0] * 10
    >>> doubt_of(steady, [1.0] * 30), doubt_of(steady, list(np.linspace(0.2, 2, 30))), doubt_of([*steady, 90.0], [1.0] * 31)
    ('', 'drifts', 'heavy tails')
    """
    x, y = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if len(x) < 2 * DRIFT_BLOCKS or not y.mean() > 0:
        return ""
    z = x - x.mean() / y.mean() * y
    if z @ z == 0:
        return ""
    if len(z) >= 20 and float(np.square(z).max()) > float(z @ z) / 3:
        return "heavy tails"
    parts = np.array_split(z, DRIFT_BLOCKS)
    within = sum(float(np.square(part - part.mean()).sum()) for part in parts)
    between = sum(len(part) * float(part.mean()) ** 2 for part in parts)
    degrees = DRIFT_BLOCKS - 1, len(z) - DRIFT_BLOCKS
    p = fisher_tail(between / degrees[0] / (within / degrees[1]), degrees) if within else 0.0
    return "drifts" if p < 0.05 else ""


def _fieller(x: float, y: float, xx: float, xy: float, yy: float) -> tuple[float, float]:
    """All R >= 0 with (x - R y)^2 <= xx - 2 R xy + R^2 yy: a R^2 - 2 b R + c <= 0."""
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    root = max(b * b - a * c, 0.0) ** 0.5
    if a > 0 and y > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if b * b > a * c and a < 0:  # all but what lies between the two roots; zero itself is inside where c <= 0
        return 0.0 if c <= 0 else max((b - root) / a, (b + root) / a, 0.0), float("inf")
    return (0.0, float("inf")) if a <= 0 else (float("nan"), float("nan"))
