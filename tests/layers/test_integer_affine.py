from math import ceil, log2

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.reference.quantized_batch_norm import levels, smallest

from bigbatch.core.checks import UserError
from bigbatch.layers.integer_affine import (
    Affine,
    boundaries,
    exact_affines,
    largest_intermediate,
    plain_rounding,
    serves,
    share_scale,
)

slopes = st.one_of(st.floats(-3, 3), st.integers(-24, 24).map(lambda n: n / 8), st.floats(-1e300, 1e300))  # eighths: half-way values
offsets = st.one_of(st.floats(-40, 40), st.integers(-80, 80).map(lambda n: n / 8), st.floats(-1e300, 1e300))


def outputs(affine, lo, hi, bits):
    return [min(max((affine.A * x + affine.B) >> affine.K, 0), 2**bits - 1) for x in range(lo, hi + 1)]


def found(a, b, lo, hi, bits):
    (affine,) = exact_affines([boundaries(a, b, lo, hi, bits=bits)], bits=bits)
    return affine


def test_hand_worked():  # X / 2 rounded: levels 0 1 1 2 2 of X = 0..4 are (X + 1) >> 1, and no integer slope has them
    points = boundaries(0.5, 0.0, 0, 4, bits=8)
    assert points == ([(1, 1), (3, 2)], [(0, 1), (2, 2), (4, 3)])
    assert exact_affines([points], bits=8) == [Affine(1, 1, 1)]


def test_hand_worked_downhill():  # -X / 2 + 2: levels 2 2 1 1 0 are (4 - X + 1) >> 1, half-way values rounded up
    assert found(-0.5, 2.0, 0, 4, 8) == Affine(-1, 5, 1)


def test_what_is_clipped_asks_for_nothing():  # of a million inputs only the step from 95 to 96 matters; of two steps, their distance
    assert found(0.011, -0.55, 0, 10**6, 1) == Affine(1, -95, 0)
    assert found(0.011, -0.55, 0, 10**6, 2).K > 5


@given(a=slopes, b=offsets, lo=st.integers(-300, 300), width=st.integers(0, 300), bits=st.integers(1, 10))
@example(a=0.0, b=0.5, lo=-3, width=9, bits=8)
@example(a=5e-324, b=-0.5, lo=0, width=9, bits=8)  # the smallest float decides on which side of half-way
@example(a=-5e-324, b=0.5, lo=0, width=9, bits=8)
def test_every_input_has_its_level_and_the_shift_is_within_the_bound(a, b, lo, width, bits):
    hi = lo + width
    affine = found(a, b, lo, hi, bits)
    assert outputs(affine, lo, hi, bits) == levels(a, b, lo, hi, bits)
    assert ceil(log2(3 * max(width, 1) ** 2)) >= affine.K


@given(a=slopes, b=offsets, lo=st.integers(-6, 6), width=st.integers(0, 12), bits=st.integers(1, 2))
def test_no_smaller_shift_and_no_smaller_slope_serves(a, b, lo, width, bits):
    affine = found(a, b, lo, lo + width, bits)
    assert smallest(a, b, lo, lo + width, bits) == (affine.K, abs(affine.A))


@given(a=slopes, b=offsets, A=st.integers(-40, 40), B=st.integers(-200, 200), K=st.integers(0, 5))
def test_the_boundaries_tell_what_all_inputs_do(a, b, A, B, K):
    wanted = levels(a, b, -9, 9, 3)
    assert serves(Affine(A, B, K), boundaries(a, b, -9, 9, bits=3)) == (outputs(Affine(A, B, K), -9, 9, 3) == wanted)


def test_channels_are_searched_together_as_alone():
    rows = [(0.3, 1.0, -100, 100), (-1.7, 40.0, 0, 60), (0.0, 2.5, 0, 9), (1e-4, 0.0, 0, 30_000)]
    points = [boundaries(*row, bits=8) for row in rows]
    together = exact_affines(points, bits=8)
    assert together == [found(*row, 8) for row in rows]
    shared = share_scale(together)
    assert {affine.K for affine in shared} == {max(affine.K for affine in together)}
    assert all(outputs(affine, lo, hi, 8) == levels(a, b, lo, hi, 8) for affine, (a, b, lo, hi) in zip(shared, rows, strict=True))


@pytest.mark.parametrize("a", [0.3, -0.7, 1.1])
def test_plain_rounding_needs_more(a):
    points = boundaries(a, 0.123, 0, 999, bits=12)
    plain = next(K for K in range(60) if serves(plain_rounding(a, 0.123, K), points))
    assert plain >= exact_affines([points], bits=12)[0].K
    assert plain_rounding(0.3, 0.2, 4) == Affine(5, 11, 4)  # 4.8 and 11.2


@given(A=st.integers(-99, 99), B=st.integers(-999, 999), lo=st.integers(-50, 50), width=st.integers(0, 50))
def test_the_largest_intermediate_is_that_of_all_inputs(A, B, lo, width):
    every = [abs(v) for x in range(lo, lo + width + 1) for v in (x, A, B, A * x, A * x + B)]
    assert largest_intermediate(Affine(A, B, 3), lo, lo + width) == max(every)


def test_a_shift_beyond_int64_is_refused():
    flat = boundaries(2.0**-40 / 3, 0.0, 0, 2**56, bits=16)
    with pytest.raises(UserError, match="channel 1: no K up to 44 serves its 16 bits of output; narrow the input range or lower bits"):
        exact_affines([boundaries(1.0, 0.0, 0, 9, bits=16), flat], bits=16)
