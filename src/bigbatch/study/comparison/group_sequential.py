r"""How sure each look must be, so that looking again and again is wrong no more often than once in twenty.

Paper:   Lan & DeMets 1983, Discrete Sequential Boundaries for Clinical Trials, Biometrika 70(3).
Formula: with the share t = n / n_max of the runs, the error spent by then is a(t), and a(1) = alpha:
             O'Brien-Fleming type  a(t) = 2 - 2 Phi(z_(alpha/2) / sqrt(t))     (hardly any at first)
             Pocock type           a(t) = alpha ln(1 + (e - 1) t)              (early looks may decide)
         The boundary b_k of the k-th look solves  P(Z_j < b_j for all j < k, Z_k >= b_k) = a(t_k) - a(t_(k-1))  for the sums of n_k
         independent standard normals, over sqrt(n_k); its one-sided level is 1 - Phi(b_k).
Differs: the level is used with Student's t at n - 1 degrees of freedom (Jennison & Turnbull 2000, section 3.8), which crosses a little
         more often than the normal: with looks at 3, 4 ... 14 in 0.058 (Pocock) and 0.054 for an alpha of 0.05. So `verdict` spends
         0.85 of its error where it looks more than once (benchmarks/verdict_error.py).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from bigbatch.core.extras import needed

with needed("the verdict of a study", extra="study"):
    from scipy import optimize, special, stats

NUM_POINTS, REACH = 801, 8.0  # of the grid over a sum, from -8 standard deviations on
LEAST = 1e-9  # a level below this is no look at all

Spending = Callable[[float, float], float]


def obrien_fleming(share: float, alpha: float) -> float:
    """Error spent at a share of the runs, hardly any at first.

    >>> [round(obrien_fleming(share, 0.05), 5) for share in (0.25, 0.5, 1.0)]
    [9e-05, 0.00557, 0.05]
    """
    return float(2 - 2 * special.ndtr(-special.ndtri(alpha / 2) / math.sqrt(share)))


def pocock(share: float, alpha: float) -> float:
    """Error spent at a share of the runs, about as much by each.

    >>> [round(pocock(share, 0.05), 4) for share in (0.25, 0.5, 1.0)]
    [0.0179, 0.031, 0.05]
    """
    return alpha * math.log1p((math.e - 1) * share)


@lru_cache
def levels(looks: tuple[int, ...], total: int, spending: Spending, alpha: float) -> tuple[float, ...]:
    """One-sided level of each look.

    Args:
        looks: Runs at each look, rising; all error is spent if the last has `total`.
        total: Most runs.
        spending: How the error is spent.
        alpha: The whole error.

    >>> [round(level, 4) for level in levels((5, 10), 10, obrien_fleming, 0.05)]
    [0.0056, 0.0482]
    """
    found, spent, before = [], 0.0, 0
    sums, density = np.zeros(1), np.ones(1)  # of the paths that no look has ended, at `before` runs
    for n in looks:
        wanted, spread = spending(n / total, alpha) - spent, math.sqrt(n - before)

        def crosses(b: float, n: int = n, spread: float = spread, sums: np.ndarray = sums, density: np.ndarray = density) -> float:
            return float(density @ special.ndtr((sums - b * math.sqrt(n)) / spread))

        b = optimize.brentq(lambda b, f=crosses, w=wanted: f(b) - w, -REACH, REACH) if wanted > LEAST else REACH
        found.append(float(special.ndtr(-b)) if wanted > LEAST else 0.0)
        spent += wanted if wanted > LEAST else 0.0
        grid = np.linspace(-REACH * math.sqrt(n), b * math.sqrt(n), NUM_POINTS)
        width = np.full(NUM_POINTS, grid[1] - grid[0])
        width[[0, -1]] /= 2  # trapezia
        kernel = np.exp(-0.5 * ((grid[:, None] - sums) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        sums, density, before = grid, width * (kernel @ density), n
    return tuple(found)


@lru_cache
def share_level(looks: tuple[int, ...], share: float, alpha: float, *, few: bool) -> float:
    """One-sided level at which Clopper and Pearson's bound may exclude a share of cases at any look, wrongly in `alpha` of studies at most.

    Exact, by the distribution of the cases in studies that go on; never above `alpha`.

    Args:
        looks: Runs at each look, rising.
        share: That is excluded, in (0, 1).
        alpha: The whole error.
        few: Whether it is excluded for few cases, as too large; else for many, as too small.

    >>> round(share_level((14,), 0.2, 0.05, few=True), 4), round(share_level(tuple(range(14, 61)), 0.2, 0.05, few=True), 3)
    (0.05, 0.019)
    """
    level = alpha
    while looks and _excluded(looks, share, level, few) > alpha:
        level *= 0.99
    return level


def _excluded(looks: tuple[int, ...], share: float, level: float, few: bool) -> float:
    """Probability that some look excludes the true share."""
    before, going, error = 0, np.ones(1), 0.0  # of so many cases, among studies that go on
    for n in looks:
        going = np.convolve(going, stats.binom.pmf(np.arange(n - before + 1), n - before, share))
        cases, before = np.arange(n + 1), n
        tail = stats.binom.cdf(cases, n, share) if few else stats.binom.sf(cases - 1, n, share)
        error += float(going[tail <= level].sum())
        going = np.where(tail <= level, 0.0, going)
    return error
