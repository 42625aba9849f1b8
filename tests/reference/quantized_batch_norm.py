"""Quantised batch norm by trying everything, in rational numbers: every K, A and B, on every input."""

from fractions import Fraction
from itertools import count
from math import floor


def levels(a, b, lo, hi, bits):
    """clip(floor(a X + b + 1/2), 0, 2^k - 1) for X = lo..hi; a and b are what their floats are exactly."""
    return [min(max(floor(Fraction(a) * x + Fraction(b) + Fraction(1, 2)), 0), 2**bits - 1) for x in range(lo, hi + 1)]


def smallest(a, b, lo, hi, bits):
    """The smallest K for which any A and B give these levels, and the smallest |A| that does."""
    wanted = levels(a, b, lo, hi, bits)
    for K in count():
        steepest = 2**bits << K  # from level 0 to the top within one X
        for A in sorted(range(-steepest, steepest + 1), key=abs):
            furthest = (2**bits << K) + abs(A) * max(abs(lo), abs(hi))
            for B in range(-furthest, furthest + 1):
                if all(min(max((A * x + B) >> K, 0), 2**bits - 1) == y for x, y in zip(range(lo, hi + 1), wanted, strict=True)):
                    return K, abs(A)
    raise AssertionError
