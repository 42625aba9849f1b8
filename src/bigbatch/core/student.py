r"""Student's t and Fisher's F, the two distributions that intervals of measurements need, in plain Python.

Formula: with I_x(a, b) the regularised incomplete beta function,
             P(T > t) = I_x(nu/2, 1/2) / 2    for t >= 0,    x = nu / (nu + t^2)
             P(F > f) = I_x(d2/2, d1/2),                     x = d2 / (d2 + d1 f)
         I_x by its continued fraction (https://dlmf.nist.gov/8.17.E22), evaluated by Lentz's method; the quantile by Newton's method for
         log P(T > t) as a function of log t, which is concave: a step from either side ends beyond the root, and further ones come nearer.
Why:     scipy has both; it is 140 MB, and slow to import, for whoever only wants the interval of a noise scale.
Limits:  relative errors are 1e-11 up to a thousand degrees of freedom and 1e-7 up to a million: the tests compare with scipy.
"""

import math
from functools import lru_cache
from statistics import NormalDist

TINY, CLOSE = 1e-300, 4e-16
MOST_TERMS = 100_000


def incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) for a, b > 0 and x in [0, 1], with y = 1 - x to all its digits.

    >>> round(incomplete_beta(2, 3, 0.4, 0.6), 12)  # at least 2 of 4 at 0.4: 1 - 0.6^4 - 4 * 0.4 * 0.6^3
    0.5248
    """
    if x <= 0 or y <= 0:
        return float(y <= 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(b, a, y, x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)) / a
    d = value = 1 / (1 - (a + b) * x / (a + 1))
    c = 1.0
    for m in range(1, MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / (1 + numerator * d or TINY)
            c = 1 + numerator / c or TINY
            value *= c * d
        if abs(c * d - 1) < CLOSE:
            break
    return front * value


def student_tail(t: float, degrees: float) -> float:
    """P(T > t) for t >= 0.

    >>> round(student_tail(1.0, 1), 12)  # 1/2 - atan(1) / pi
    0.25
    """
    whole = degrees + t * t
    return incomplete_beta(degrees / 2, 0.5, degrees / whole, t * t / whole) / 2


@lru_cache(maxsize=4096)
def student_quantile(p: float, degrees: float) -> float:
    """The t with P(T <= t) = p.

    Args:
        p: In [0, 1]; infinite quantiles at its ends.
        degrees: Of freedom, above zero.

    >>> round(student_quantile(0.975, 9), 6), student_quantile(0.5, 3), round(student_quantile(0.25, 1), 12)
    (2.262157, 0.0, -1.0)
    """
    if not (0 <= p <= 1 and degrees > 0):
        return math.nan
    if p < 0.5:
        return -student_quantile(1 - p, degrees)
    if p in (0.5, 1):
        return 0.0 if p == 0.5 else math.inf
    t = NormalDist().inv_cdf(p)
    if degrees == math.inf:
        return t
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    for _ in range(100):
        tail = student_tail(t, degrees)
        density = math.exp(log_norm - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = math.log(tail / (1 - p)) * tail / (t * density)
        t *= math.exp(step)
        if abs(step) < 1e-14:
            break
    return t


def fisher_tail(f: float, degrees: tuple[float, float]) -> float:
    """P(F > f) for f >= 0, with degrees of freedom of the numerator and of the denominator.

    >>> round(fisher_tail(2.0, (2, 3)), 3)
    0.281
    """
    d1, d2 = degrees
    whole = d2 + d1 * f
    return incomplete_beta(d2 / 2, d1 / 2, d2 / whole, d1 * f / whole)
