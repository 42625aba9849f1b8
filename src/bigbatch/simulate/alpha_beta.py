r"""Alpha-beta model: an exchange of b bytes takes alpha + beta b seconds, fitted to measurements.

Source:  Thakur, Rabenseifner, Gropp 2005, Optimization of Collective Communication Operations in MPICH, IJHPCA 19(1);
         Patarasu, Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations, JPDC 69(2).
Formula: fit, with t_i the median seconds at b_i bytes,
             min over alpha, beta >= 0 of  sum_i ((alpha + beta b_i - t_i) / t_i)^2
         ring all-reduce on n workers (reduce-scatter, then all-gather, n - 1 steps of b/n bytes each),
             T(b) = 2 (n - 1) alpha + 2 (n - 1)/n  b beta        alpha, beta: of one message between neighbours
Units:   seconds, bytes.
Differs: no term for the additions (gamma in Thakur et al.): a fit has it inside beta.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive


class AlphaBeta(NamedTuple):
    """Cost of one kind of exchange.

    Attributes:
        alpha_s: Seconds that any exchange takes, >= 0.
        beta_s_per_byte: Seconds that each byte adds, >= 0.
        residual: Root mean square of the relative error at the measured sizes; 0 for a model that was not fitted.
    """

    alpha_s: float
    beta_s_per_byte: float
    residual: float = 0.0

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """1 / beta; infinite where bytes cost nothing."""
        return 1 / self.beta_s_per_byte if self.beta_s_per_byte else math.inf

    def seconds(self, num_bytes: float) -> float:
        """Seconds that an exchange of `num_bytes` takes.

        >>> AlphaBeta(alpha_s=0.5, beta_s_per_byte=0.25).seconds(8)
        2.5
        """
        return self.alpha_s + self.beta_s_per_byte * num_bytes


def fit_alpha_beta(seconds: Mapping[int, Sequence[float]]) -> AlphaBeta:
    """Fit the model to measurements, by relative error of the medians: 10 % off counts the same at 4 kB and at 16 MB.

    Args:
        seconds: For each size in bytes, the seconds of one or more exchanges; two sizes at least.

    Returns:
        The model of that exchange (of the whole all-reduce, if all-reduces were timed) and its residual.

    Raises:
        UserError: If there are fewer than two sizes, a size has no time, or a size or time is not above zero.

    >>> fit = fit_alpha_beta({1000: [2.0, 2.0, 9.0], 2000: [3.0], 4000: [5.0]})
    >>> print(f"{fit.alpha_s:.6f} {fit.beta_s_per_byte:.6f} {fit.residual:.6f}")
    1.000000 0.001000 0.000000
    """
    if len(seconds) < 2:
        raise UserError(f"{len(seconds)} sizes measured: latency and bandwidth need two at least; measure another size")
    for num_bytes, times in seconds.items():
        check_positive("num_bytes", num_bytes)
        check_positive(f"times at {num_bytes} bytes", len(times), "measure that size, or leave it out")
        for time in times:
            check_positive("seconds", time)
    sizes = list(seconds)
    medians = [statistics.median(seconds[b]) for b in sizes]
    weights = [1 / t**2 for t in medians]
    mean_b, mean_t = _mean(sizes, weights), _mean(medians, weights)
    spread = _mean([(b - mean_b) ** 2 for b in sizes], weights)
    beta = _mean([(b - mean_b) * (t - mean_t) for b, t in zip(sizes, medians, strict=True)], weights) / spread
    alpha = mean_t - beta * mean_b
    if beta < 0:
        alpha, beta = mean_t, 0.0
    elif alpha < 0:
        products = [b * t for b, t in zip(sizes, medians, strict=True)]
        alpha, beta = 0.0, _mean(products, weights) / _mean([b**2 for b in sizes], weights)
    errors = [((alpha + beta * b - t) / t) ** 2 for b, t in zip(sizes, medians, strict=True)]
    return AlphaBeta(alpha, beta, math.sqrt(statistics.fmean(errors)))


def ring_all_reduce(link: AlphaBeta, *, workers: int) -> AlphaBeta:
    """Cost of a ring all-reduce of b bytes, from that of one message between neighbours.

    Args:
        link: One message.
        workers: n, at least 2.

    Returns:
        The whole all-reduce: its alpha is 2 (n - 1) of the link's, its beta 2 (n - 1)/n.

    Raises:
        UserError: If there are fewer than two workers.

    >>> ring_all_reduce(AlphaBeta(alpha_s=0.5, beta_s_per_byte=0.25), workers=4)
    AlphaBeta(alpha_s=3.0, beta_s_per_byte=0.375, residual=0.0)
    """
    steps = _steps(workers)
    return AlphaBeta(link.alpha_s * steps, link.beta_s_per_byte * steps / workers, link.residual)


def ring_link(all_reduce: AlphaBeta, *, workers: int) -> AlphaBeta:
    """Cost of one message between neighbours, from that of a ring all-reduce: the inverse of `ring_all_reduce`.

    Args:
        all_reduce: The whole all-reduce, such as a fit.
        workers: n, at least 2.

    Returns:
        The link; its beta includes the additions.

    Raises:
        UserError: If there are fewer than two workers.

    >>> ring_link(AlphaBeta(alpha_s=3.0, beta_s_per_byte=0.375), workers=4)
    AlphaBeta(alpha_s=0.5, beta_s_per_byte=0.25, residual=0.0)
    """
    steps = _steps(workers)
    return AlphaBeta(all_reduce.alpha_s / steps, all_reduce.beta_s_per_byte * workers / steps, all_reduce.residual)


def _steps(workers: int) -> int:
    if workers < 2:
        raise UserError(f"workers = {workers}: a ring needs two at least; one worker exchanges nothing")
    return 2 * (workers - 1)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
