r"""Integers A, B and a shift K with (A X + B) >> K = floor(a X + b + 1/2) for every integer X of a range, after clipping; the smallest K.

For each level q that is reached between lo and hi, first at X = x_q (a > 0; a < 0 mirrors it), exactness asks for two things and no more:

    A x_q + B >= q 2^K          A (x_q - 1) + B <= q 2^K - 1

and the like at lo and hi, where these lie inside a level; what is clipped asks for nothing. A given A leaves B an interval, from the
largest lower bound to the smallest upper one. Its length is a concave function of A, linear between kinks, so Newton's iteration from
A = 0 ends at the smallest |A| where it is not negative, or proves that there is none. Where (A, B, K) serves, (2A, 2B, K + 1) does: the
smallest shared K is the largest of the channels' own.

K = ceil(log2(3 D^2)) always serves, D being the distance of the outermost points. In units of 2^K, B's interval has the length f(s) of the
slope s = A / 2^K, concave, with integer derivatives, at least 1 where the derivative is 0. It is positive between two fractions with
denominators up to D, which are at least 1 / D^2 = 3 steps of 2^-K apart. So a slope A / 2^K lies a step or more from both, where
f >= 2^-K, and leaves B an integer.
"""

from fractions import Fraction
from math import floor
from typing import NamedTuple

import torch
from torch import Tensor

from bigbatch.core.checks import UserError

Points = list[tuple[int, int]]


class Affine(NamedTuple):
    """The integers of a channel, Y = (A X + B) >> K; Python's own, which don't overflow."""

    A: int
    B: int
    K: int


def boundaries(a: float, b: float, lo: int, hi: int, *, bits: int) -> tuple[Points, Points]:
    """The (X, q) where A X + B must reach q 2^K, and those where it must stay below: what exactness for every X asks for, and no more.

    >>> boundaries(0.25, 0.0, 0, 9, bits=1)  # level 1 from X = 2 on, where 0.25 * 2 is rounded up
    ([(2, 1)], [(1, 1)])
    """
    if a < 0:
        reach, below = boundaries(-a, b, -hi, -lo, bits=bits)
        return [(-x, q) for x, q in reach], [(-x, q) for x, q in below]
    (n, n_over), (m, m_over) = a.as_integer_ratio(), b.as_integer_ratio()
    s = max(n_over, m_over)  # both are powers of two
    n, m, top = n * (s // n_over), m * (s // m_over), 2**bits - 1  # a = n / s, b = m / s
    first, last = (min(max((2 * (n * x + m) + s) // (2 * s), 0), top) for x in (lo, hi))
    reach = [(-((2 * m - (2 * q - 1) * s) // (2 * n)), q) for q in range(first + 1, last + 1)]  # x_q = ceil((q - 1/2 - b) / a)
    below = [(x - 1, q) for x, q in reach]
    ends = [lo, hi] if first == last else []  # a constant is safe from slopes of either sign
    reach += [(x, first) for x in ends or [lo] if first > 0]
    below += [(x, last + 1) for x in ends or [hi] if last < top]
    return reach, below


def serves(affine: Affine, points: tuple[Points, Points]) -> bool:
    """Whether the integers give every admissible X its level."""
    A, B, K = affine
    reach, below = points
    return all(A * x + B >= q << K for x, q in reach) and all(A * x + B < q << K for x, q in below)


def exact_affines(points: list[tuple[Points, Points]], *, bits: int) -> list[Affine]:
    """For each channel the smallest K with which any integers serve, and those with the smallest |A|.

    Args:
        points: The `boundaries` of each channel.
        bits: k.

    Raises:
        UserError: If a channel needs a K that int64 has no room for.

    >>> exact_affines([boundaries(0.3, 0.0, 0, 9, bits=2)], bits=2)  # levels 0 0 1 1 1 1 2 2 2 3
    [Affine(A=5, B=6, K=4)]
    """
    origins = [(reach or below)[0][0] for reach, below in points]  # X counts from here: no number of the search passes 2^62
    reach = _stacked([reach for reach, _ in points], origins, 0)
    below = _stacked([below for _, below in points], origins, 2**bits)
    found: dict[int, Affine] = {}
    todo = torch.arange(len(points))
    for K in range(61 - bits):
        A, least, most = _newton(reach[:, todo], below[:, todo], K)
        for c, slope, offset in torch.stack([todo, A, least], 1)[least <= most].tolist():
            found[c] = Affine(slope, offset - slope * origins[c], K)
        todo = todo[least > most]
        if not len(todo):
            return [found[c] for c in range(len(points))]
    raise UserError(f"channel {todo[0]}: no K up to {60 - bits} serves its {bits} bits of output; narrow the input range or lower bits")


def _stacked(points: list[Points], origins: list[int], free: int) -> Tensor:
    """(2, C, n): X and q of each channel's points, filled up with its first; one that a constant keeps to anyway, where it has none."""
    full = [each or [(origin, free)] for each, origin in zip(points, origins, strict=True)]
    n = max(map(len, full))
    rows = [[(x - origin, q) for x, q in each + each[:1] * (n - len(each))] for each, origin in zip(full, origins, strict=True)]
    return torch.tensor(rows).permute(2, 0, 1).contiguous()


def _newton(reach: Tensor, below: Tensor, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest |A| of each channel that leaves B an interval, least <= most; where there is none, least > most."""
    A, each = reach.new_zeros(reach.shape[1]), torch.arange(reach.shape[1])
    low, high = A - 2**62, A + 2**62
    while True:
        least, i = ((reach[1] << K) - A[:, None] * reach[0]).max(1)
        most, j = ((below[1] << K) - 1 - A[:, None] * below[0]).min(1)
        d, rise = below[:, each, j] - reach[:, each, i]  # the points that bind; together they ask for A d <= 2^K rise - 1
        bound = d.sign() * torch.div((rise << K) - 1, d.abs().clamp(min=1), rounding_mode="floor")
        high = torch.where((least > most) & (d > 0), bound, high)
        low = torch.where((least > most) & (d < 0), bound, low)
        move = (least > most) & (low <= high)
        if not move.any():
            return A, least, most
        A = torch.where(move, bound, A)


def share_scale(affines: list[Affine]) -> list[Affine]:
    """The same maps with one K, the largest.

    >>> share_scale([Affine(3, -1, 2), Affine(5, 7, 4)])
    [Affine(A=12, B=-4, K=4), Affine(A=5, B=7, K=4)]
    """
    K = max(affine.K for affine in affines)
    return [Affine(A << (K - k), B << (K - k), K) for A, B, k in affines]


def plain_rounding(a: float, b: float, K: int) -> Affine:
    """What is done without a search, A = round(a 2^K) and B = round((b + 1/2) 2^K): the baseline. It needs a larger K, if any serves."""
    return Affine(floor(Fraction(a) * 2**K + Fraction(1, 2)), floor((Fraction(b) + Fraction(1, 2)) * 2**K + Fraction(1, 2)), K)


def largest_intermediate(affine: Affine, lo: int, hi: int) -> int:
    """The largest |.| of X, A, B, A X and A X + B over lo <= X <= hi; all are linear in X, so the ends tell.

    >>> largest_intermediate(Affine(-3, 10, 2), -4, 7)
    22
    """
    A, B, _ = affine
    return max(abs(v) for x in (lo, hi) for v in (x, A, B, A * x, A * x + B))
