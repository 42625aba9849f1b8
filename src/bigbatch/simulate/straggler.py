r"""Stragglers: who waits for whom, where the time to compute differs from worker to worker and from update to update.

    With compute times of mean c and standard deviation s c, normal and independent, and E(n) the expected largest of n standard normals,
        all n wait for each other                    c (1 + s E(n))
        they do so after H updates only              c (1 + s E(n) / sqrt(H))
        each waits for m, itself among them, most    c (1 + s min(sqrt(2 ln m), E(n)) / sqrt(H))
        g wait in each update, p such groups after H c (1 + s E(g) + s D(g) E(p) / sqrt(H))
    The third is a bound: after k updates a worker's time is the largest over m^k paths of sums of k times, of deviation s sqrt(k); the
    expected largest of N normals is below sqrt(2 ln N). D(g) is the deviation of the largest of g standard normals; its sums over H updates
    are taken for normal.

Compute times have no long tail here. A worker that is slow for good makes all wait for it, in gossip as well as in an all-reduce.
"""

import math
from collections.abc import Iterator
from functools import cache

from bigbatch.core.checks import UserError

REACH, POINTS = 9.0, 3600  # of the integral: in standard deviations, beyond which a normal adds less than a float can hold


@cache
def expected_largest(number: int) -> float:
    """E(n), the expected largest of n standard normals: L minus the integral of Phi(x)^n from -L to L, for a large L.

    Raises:
        UserError: If the number is below 1.

    >>> round(expected_largest(2), 4)  # 1 / sqrt(pi)
    0.5642
    """
    if number < 1:
        raise UserError(f"number = {number}: must be 1 or more; the largest of none is unknown")
    step = 2 * REACH / POINTS
    return REACH - step * (math.fsum(below for _, below in _none_above(number)) + 0.5)


@cache
def deviation_of_largest(number: int) -> float:
    """D(n), the standard deviation of the largest of n standard normals: E(n^2) is L^2 minus twice the integral of x Phi(x)^n.

    Raises:
        UserError: If the number is below 1.

    >>> round(deviation_of_largest(2) ** 2, 4)  # 1 - 1/pi
    0.6817
    """
    step = 2 * REACH / POINTS
    square = REACH**2 - 2 * step * (math.fsum(x * below for x, below in _none_above(number)) + 0.5 * REACH)
    return math.sqrt(square - expected_largest(number) ** 2)


def _none_above(number: int) -> Iterator[tuple[float, float]]:
    """Points between -L and L, and the chance that none of n normals is above."""
    for i in range(1, POINTS):
        x = 2 * REACH * i / POINTS - REACH
        yield x, (0.5 * math.erfc(-x / math.sqrt(2))) ** number


def slowest(workers: int, spread: float, updates: int = 1) -> float:
    """What waiting for all makes of an update's compute: 1 + s E(n) / sqrt(H).

    Args:
        workers: n.
        spread: s, standard deviation over mean of the time to compute.
        updates: H, from one wait to the next.

    >>> round(slowest(2, 0.1), 4), round(slowest(2, 0.1, updates=4), 4)
    (1.0564, 1.0282)
    """
    return 1 + spread * expected_largest(workers) / math.sqrt(updates)


def slowest_nearby(workers: int, spread: float, waits_for: int, updates: int = 1) -> float:
    """At most what waiting for some makes of an update's compute: 1 + s min(sqrt(2 ln m), E(n)) / sqrt(H).

    Args:
        workers: n.
        spread: s.
        waits_for: m, workers that each waits for, itself among them.
        updates: H, from one wait to the next.

    >>> round(slowest_nearby(1000, 0.1, waits_for=2), 4)
    1.1177
    """
    return 1 + spread * min(math.sqrt(2 * math.log(waits_for)), expected_largest(workers)) / math.sqrt(updates)


def slowest_group(together: int, groups: int, spread: float, updates: int = 1) -> float:
    """What waiting for a group in each update, and for all groups now and then, makes of an update's compute.

    Args:
        together: g, workers that wait for each other in each update.
        groups: p.
        spread: s.
        updates: H, from one wait for all groups to the next.

    >>> round(slowest_group(2, 2, 0.1, updates=4), 4)  # 1 + 0.1 (0.5642 + 0.8257 * 0.5642 / 2)
    1.0797
    """
    among = deviation_of_largest(together) * expected_largest(groups) / math.sqrt(updates)
    return 1 + spread * (expected_largest(together) + among)
