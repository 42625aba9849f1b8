"""Whether a curve misses its points by more than repeats of a point scatter: the F test of lack of fit."""

from collections.abc import Sequence

import numpy as np

from bigbatch.core.student import fisher_tail

LEAST_SCATTER = 1e-6


def f_test(points: Sequence[tuple[float, Sequence[float]]], *, num_parameters: int) -> float:
    """P of a misfit this large if the curve is right and repeats scatter normally; NaN where it can't be told.

    Args:
        points: For each point the curve's value and the repeats.
        num_parameters: Of the fitted curve.

    >>> round(f_test([(0.0, [-1.0, 1.0]), (0.0, [1.0, 3.0]), (0.0, [-1.0, 1.0])], num_parameters=1), 3)  # F = 8/2 / (6/3) = 2 of (2, 3)
    0.281
    """
    degrees = len(points) - num_parameters, sum(len(repeats) - 1 for _, repeats in points)
    if min(degrees) < 1:
        return float("nan")
    within = sum(float(np.var(repeats)) * len(repeats) for _, repeats in points) + LEAST_SCATTER**2
    between = sum(len(repeats) * (float(np.mean(repeats)) - value) ** 2 for value, repeats in points)
    return fisher_tail(between / degrees[0] / (within / degrees[1]), degrees)
