from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import gradual_warmup


def test_hand_worked():  # Goyal: from 0.1 to 0.8 over 4 epochs of 100 samples; after one epoch 0.1 + 0.7 / 4
    lrs = [0.8 * gradual_warmup(Clock(samples=s), warmup_samples=400, start_factor=0.1 / 0.8) for s in (0, 100, 400, 900)]
    assert lrs == pytest.approx([0.1, 0.275, 0.8, 0.8], rel=1e-12)


def test_adds_a_constant_each_update():
    factors = [gradual_warmup(Clock(samples=128 * i), warmup_samples=1280, start_factor=0.25) for i in range(11)]
    steps = [b - a for a, b in pairwise(factors)]
    assert steps == pytest.approx([0.075] * 10)


@given(warmup=st.floats(1, 1e7), start=st.floats(0, 1), samples=st.integers(0, 10**8))
def test_stays_between_start_and_peak(warmup, start, samples):
    assert start <= gradual_warmup(Clock(samples=samples), warmup_samples=warmup, start_factor=start) <= 1


def test_no_warmup_is_the_peak():
    assert gradual_warmup(Clock(), warmup_samples=0) == 1


@pytest.mark.parametrize("start", [-0.1, 1.5])
def test_refuses_a_start_outside_0_to_1(start):
    with pytest.raises(UserError, match=f"start_factor = {start}: must lie from 0 to 1"):
        gradual_warmup(Clock(), warmup_samples=10, start_factor=start)
