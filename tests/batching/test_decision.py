import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.batching import Bounds, Proposal, decide
from bigbatch.batching.decision import HYSTERESIS, MOST_FACTOR, check_growing
from bigbatch.core.checks import UserError

BOUNDS = Bounds(64, 4096, 64)
WISHES = st.floats(min_value=0, allow_nan=False)


@st.composite
def bounds_and_now(draw):
    multiple = draw(st.integers(1, 100))
    low, more = draw(st.integers(1, 50)), draw(st.integers(0, 200))
    bounds = Bounds(low * multiple, (low + more) * multiple, multiple)
    return bounds, draw(st.integers(low, low + more)) * multiple


@pytest.mark.parametrize(
    ("wish", "now", "after", "why"),
    [
        (270.0, 256, 256, "w; too near to change"),
        (285.0, 256, 256, "w; too near to change"),  # further than 1.1, but the nearest multiple is the same
        (384.0, 256, 384, "w"),
        (500.0, 256, 512, "w"),
        (600.0, 256, 512, "w; at most 2 times the batch at once"),
        (math.inf, 256, 512, "w; at most 2 times the batch at once"),
        (math.inf, 4096, 4096, "w; the largest allowed"),
        (math.inf, 3072, 4096, "w; the largest allowed"),
        (150.0, 256, 128, "w"),
        (1.0, 256, 128, "w; at most 1/2 of the batch at once"),
        (1.0, 320, 192, "w; at most 1/2 of the batch at once"),  # 160 lies between 128 and 192: less than half would be too far
        (0.0, 64, 64, "w; the smallest allowed"),
        (70.0, 100, 64, "w"),  # a present batch that is no multiple
        (100.0, 100, 128, "w"),
        (5000.0, 8192, 4096, "w; the largest allowed"),  # and one beyond the bounds
        (8192.0, 8192, 4096, "w; the largest allowed"),
    ],
)
def test_hand_worked(wish, now, after, why):
    assert decide(Proposal(wish, "w"), now, BOUNDS) == (after, why)


def test_the_band_of_hysteresis():
    bounds = Bounds(1, 10_000)
    assert decide(Proposal(1000 * HYSTERESIS - 1, "w"), 1000, bounds)[0] == 1000
    assert decide(Proposal(1000 * HYSTERESIS + 1, "w"), 1000, bounds)[0] == 1101
    assert decide(Proposal(1000 / HYSTERESIS + 1, "w"), 1000, bounds)[0] == 1000
    assert decide(Proposal(1000 / HYSTERESIS - 1, "w"), 1000, bounds)[0] == 908


@given(bounds_and_now(), WISHES)
def test_every_decision_is_possible_and_at_most_twice_or_half(place, wish):
    bounds, now = place
    after, reason = decide(Proposal(wish, "w"), now, bounds)
    assert isinstance(after, int)
    assert bounds.smallest <= after <= bounds.largest
    assert after % bounds.multiple_of == 0
    assert now / MOST_FACTOR <= after <= now * MOST_FACTOR
    assert reason.startswith("w")
    assert after == now or (after > now) == (wish > now), "never against the wish"


@given(bounds_and_now(), WISHES, WISHES)
def test_a_larger_wish_is_never_a_smaller_batch(place, one, other):
    bounds, now = place
    small, large = (decide(Proposal(w, ""), now, bounds)[0] for w in sorted((one, other)))
    assert small <= large


@given(bounds_and_now(), WISHES)
def test_deciding_again_and_again_settles(place, wish):
    bounds, now = place
    seen = [now]
    for _ in range(40):
        seen.append(decide(Proposal(wish, ""), seen[-1], bounds)[0])
    assert seen[-1] == seen[-2]
    assert seen == sorted(seen) or seen == sorted(seen, reverse=True)


@given(bounds_and_now(), st.floats(0, 1e6))
def test_nearest_is_nearest(place, wish):
    bounds, _ = place
    got = bounds.nearest(wish)
    for other in (got - bounds.multiple_of, got + bounds.multiple_of):
        if bounds.smallest <= other <= bounds.largest:
            assert abs(got - wish) <= abs(other - wish) + 1e-6


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds(100, 120, 64), "batches from 100 to 120 in multiples of 64: there is none; widen the bounds"),
        (Bounds(200, 100), "batches from 200 to 100 in multiples of 1: there is none; widen the bounds"),
        (Bounds(1, 63, 64), "batches from 1 to 63 in multiples of 64: there is none; widen the bounds"),
        (Bounds(0, 64), "smallest = 0: must be a finite number above zero"),
        (Bounds(1, 64, 0), "multiple_of = 0: must be a finite number above zero"),
    ],
)
def test_bounds_that_exclude_every_choice_are_refused(bounds, message):
    with pytest.raises(UserError, match=message):
        bounds.check()


def test_bounds_that_leave_one_choice_are_not():
    Bounds(100, 128, 64).check()
    Bounds(64, 64, 64).check()
    assert decide(Proposal(1000.0, "w"), 128, Bounds(100, 128, 64)) == (128, "w; the largest allowed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((96, 512, 64), "global_batch = 96: must be a multiple of multiple_of = 64; take 64 or 128"),
        ((32, 512, 64), "global_batch = 32: must be a multiple of multiple_of = 64; take 64"),
        ((64, 32, 64), "largest = 32: must be at least global_batch = 64; give a larger one, or the same to keep it"),
        ((0, 32, 64), "global_batch = 0: must be a finite number above zero"),
        ((64, 64, 0), "multiple_of = 0: must be a finite number above zero"),
    ],
)
def test_a_batch_that_cannot_grow_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        check_growing(*arguments)
