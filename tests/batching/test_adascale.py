import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import approx, check_resumes, check_skips_what_was_not_measured, show, updates
from tests.reference import batching as reference

from bigbatch.batching import AdaScale, UpdateMeasurement
from bigbatch.batching.adascale import gain, smoothing
from bigbatch.core.checks import UserError


def test_hand_worked():  # noise / B0 = 2, noise / B = 1: (2 + 1) / (1 + 1)
    assert gain(1.0, 64.0, 32, 64) == 1.5
    assert gain(0.0, 64.0, 32, 64) == 2.0  # nothing but noise: S
    assert gain(1.0, 0.0, 32, 64) == 1.0  # no noise: a larger batch gains nothing
    assert gain(0.0, 0.0, 32, 64) == 1.0
    assert gain(-3.0, 64.0, 32, 64) == 2.0  # clipped here, after averaging
    assert gain(1.0, -3.0, 32, 64) == 1.0
    assert gain(1.0, 64.0, 32, 16) == 0.6  # half the base batch: (2 + 1) / (4 + 1)


def test_hand_worked_smoothing():
    assert [smoothing(10, t) for t in (1, 2, 100, 1000)] == [1.0, 0.5, 0.01, 0.01]
    assert smoothing(2000, 7) == 1.0  # theta = 0: the newest value alone


def test_hand_worked_progress():
    adascale = AdaScale(32)
    assert adascale.gain(64) == 1.0  # r_0 = 1
    assert adascale.advance(64) == 1.0
    show(adascale, 1, global_batch=64, signal=1.0, noise=64.0)
    assert adascale.advance(64) == 1.5
    show(adascale, 1, global_batch=64, signal=2.0, noise=32.0)  # plain means 1.5 and 48: (1.5 + 1.5) / (0.75 + 1.5)
    assert adascale.advance(64) == approx(4 / 3, rel=1e-15)
    assert adascale.progress == approx(1 + 1.5 + 4 / 3, rel=1e-15)
    assert adascale.propose(64) is None


@pytest.mark.parametrize("shards", [2, 8, 64, 500])
def test_equals_the_reference_over_100_updates(shards):
    """The paper's estimates from the gradients of S shards, where its clipping never acts; the schedule read at floor(tau)."""
    draw, base, d = np.random.default_rng(shards), 16, 30

    def lr(t):
        return 0.1 / (1 + 0.01 * t)

    runs = [draw.normal(size=(shards, d)) + 2.0 for _ in range(150)]
    adascale = AdaScale(base)
    for t, (gradients, (r, rate, tau)) in enumerate(zip(runs, reference.adascale(runs, lr), strict=True)):
        got = adascale.gain(shards * base) * lr(math.floor(adascale.progress))
        assert got == approx(rate, rel=1e-9), t
        assert adascale.advance(shards * base) == approx(r, rel=1e-9)
        assert adascale.progress == approx(tau, rel=1e-9)
        noise = base * gradients.var(axis=0, ddof=1).sum()  # of one sample
        signal = (gradients.mean(axis=0) ** 2).sum() - noise / (base * shards)
        adascale.observe(UpdateMeasurement(shards * base, signal=signal, noise=noise))
    assert 1 < adascale.gain(shards * base) < shards


def test_clips_after_averaging_and_not_before():
    adascale = show(show(AdaScale(32), 1, global_batch=64, signal=-1.0, noise=64.0), 1, global_batch=64, signal=3.0, noise=64.0)
    assert adascale.gain(64) == 1.5  # mean signal (-1 + 3) / 2 = 1


ESTIMATE = st.floats(-1e6, 1e6).map(lambda value: value if abs(value) > 1e-9 else 0.0)


@given(ESTIMATE, ESTIMATE, st.integers(1, 1000), st.integers(1, 100_000))
def test_a_gain_lies_between_one_and_the_multiple(signal, noise, base, batch):
    low, high = sorted((1.0, batch / base))
    assert low * (1 - 1e-12) <= gain(signal, noise, base, batch) <= high * (1 + 1e-12)
    assert gain(signal, noise, base, base) == 1.0


@given(st.floats(0.001, 1e3), st.floats(0, 1e6), st.integers(1, 1000), st.floats(1, 100), st.floats(1, 100))
def test_a_gain_grows_with_the_batch_and_with_the_noise(signal, noise, base, one, other):
    small, large = sorted((one, other))
    assert gain(signal, noise, base, base * small) <= gain(signal, noise, base, base * large) * (1 + 1e-12)
    assert gain(signal, noise, base, base * large) <= gain(signal, noise * 2, base, base * large) * (1 + 1e-12)


@given(st.floats(0, 1e5), st.integers(1, 1000), st.floats(1, 100))
def test_in_terms_of_the_noise_scale(b_simple, base, s):
    assert gain(1.0, b_simple, base, s * base) == approx(s * (b_simple + base) / (b_simple + s * base))


def test_at_the_base_batch_it_is_exactly_the_base_run():
    adascale = AdaScale(64)
    for update in updates(200, seed=5):
        assert adascale.advance(64) == 1.0
        adascale.observe(update)
    assert adascale.progress == 200.0


def test_the_batch_may_change_on_the_way():
    adascale = show(AdaScale(32), 50, global_batch=32, signal=1.0, noise=320.0)
    assert [adascale.advance(b) for b in (32, 320, 32, 16)] == approx([1.0, 11 / 2, 1.0, 11 / 21])
    before = adascale.gain(320)
    show(adascale, 50, global_batch=320, signal=1.0, noise=320.0)
    assert adascale.gain(320) == approx(before), "signal and noise are of one sample: the same at any batch"


def test_manners():
    check_resumes(lambda: AdaScale(32), updates(90))
    check_skips_what_was_not_measured(lambda: AdaScale(32), num_skipped=lambda rule: rule.num_skipped)
    clean, dirty = (show(AdaScale(32), 5, global_batch=64, signal=1.0, noise=64.0) for _ in range(2))
    assert show(dirty, 3, signal=math.nan, noise=1.0).gain(64) == clean.gain(64)
    adascale = show(AdaScale(32), 3, global_batch=64, signal=1.0, noise=64.0)
    adascale.advance(64)
    other = AdaScale(32)
    other.load_state_dict(adascale.state_dict())
    assert other.progress == adascale.progress == 1.5
    assert other.advance(64) == adascale.advance(64)


def test_a_start_without_signal_gains_the_whole_multiple():
    assert show(AdaScale(32), 3, global_batch=128, signal=-1.0, noise=5.0).gain(128) == 4.0
    assert show(AdaScale(32), 3, global_batch=128, signal=-1.0, noise=-5.0).gain(128) == 1.0


@pytest.mark.parametrize("base_batch", [0, -32])
def test_refuses_a_base_batch_out_of_range(base_batch):
    with pytest.raises(UserError, match=f"base_batch = {base_batch}: must be a finite number above zero; give the batch that the rate was"):
        AdaScale(base_batch)
