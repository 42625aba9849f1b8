r"""Stragglers: who waits for whom, where the time to compute differs from worker to worker and from update to update.

    With compute times of mean c and standard deviation s c, normal and independent, and E(n) the expected largest of n standard normals,
        all n wait for each other                    c (1 + s E(n))
        they do so after H updates only              c (1 + s E(n) / sqrt(H))
        each waits for m, itself among them, most    c (1 + s min(sqrt(2 ln m), E(n)))
    The last is a bound: after k updates a worker's time is the largest over m^k paths of sums of k times, of deviation s sqrt(k); the
    expected largest of N normals is below sqrt(2 ln N).

Compute times have no long tail here. A worker that is slow for good makes all wait for it, in gossip as well as in an all-reduce.
"""

import math
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
    inside = math.fsum((0.5 * math.erfc((REACH - i * step) / math.sqrt(2))) ** number for i in range(1, POINTS))
    return REACH - step * (inside + 0.5)


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


def slowest_nearby(workers: int, spread: float, waits_for: int) -> float:
    """At most what waiting for some makes of an update's compute: 1 + s min(sqrt(2 ln m), E(n)).

    Args:
        workers: n.
        spread: s.
        waits_for: m, workers that each waits for, itself among them.

    >>> round(slowest_nearby(1000, 0.1, waits_for=2), 4)
    1.1177
    """
    return 1 + spread * min(math.sqrt(2 * math.log(waits_for)), expected_largest(workers))
