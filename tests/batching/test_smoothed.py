import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import approx, check_resumes, show, updates
from tests.reference.batching import debiased_mean

from bigbatch.batching import UpdateMeasurement
from bigbatch.batching.smoothed import SmoothedNoise, noise_scale
from bigbatch.core.checks import UserError


def test_hand_worked():  # decay 0.5: weights 1/3 and 2/3, so signal (2 + 2 * 5) / 3 = 4 and noise (10 + 2 * 7) / 3 = 8
    smoothed = SmoothedNoise(decay=0.5)
    smoothed.observe(UpdateMeasurement(8, signal=2.0, noise=10.0))
    smoothed.observe(UpdateMeasurement(16, signal=5.0, noise=7.0))
    assert (smoothed.signal, smoothed.noise, smoothed.noise_scale) == approx((4.0, 8.0, 2.0), rel=1e-15)


def test_a_ratio_of_means_and_not_a_mean_of_ratios():
    smoothed = show(show(SmoothedNoise(decay=0.999), 500, signal=1.0, noise=10.0), 500, signal=3.0, noise=90.0)
    assert smoothed.noise_scale == approx(debiased_mean([10] * 500 + [90] * 500, 0.999) / debiased_mean([1] * 500 + [3] * 500, 0.999))
    assert 10 < smoothed.noise_scale < 30


def test_single_values_are_not_clipped_and_the_mean_of_the_noise_is():
    smoothed = show(show(SmoothedNoise(decay=0.5), 1, signal=1.0, noise=-30.0), 1, signal=1.0, noise=30.0)
    assert smoothed.noise == approx(10.0)  # (-30 + 2 * 30) / 3, and not (0 + 2 * 30) / 3
    assert show(smoothed, 5, signal=1.0, noise=-30.0).noise == 0.0
    assert smoothed.mean("noise") < 0
    assert smoothed.noise_scale == 0.0


def test_without_signal_the_noise_scale_is_infinite():
    assert show(SmoothedNoise(), 1, signal=-1.0, noise=5.0).noise_scale == math.inf
    assert show(SmoothedNoise(), 1, signal=0.0, noise=0.0).noise_scale == math.inf
    assert show(SmoothedNoise(), 3, signal=-1.0, noise=5.0).words == "no signal above the noise over 3 updates"
    assert show(SmoothedNoise(), 3, signal=2.0, noise=5000.0).words == "noise scale 2,500.0 over 3 updates"


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=50), st.floats(0, 0.999))
def test_equals_the_weighted_mean_of_all_values(values, decay):
    smoothed = SmoothedNoise(decay)
    for signal, noise in values:
        smoothed.observe(UpdateMeasurement(8, signal=signal, noise=noise))
    assert smoothed.signal == approx(debiased_mean([s for s, _ in values], decay), rel=1e-9, abs=1e-9)
    assert smoothed.noise == approx(max(debiased_mean([n for _, n in values], decay), 0), rel=1e-9, abs=1e-9)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_noise_scale_is_never_nan_and_never_negative(signal, noise):
    assert noise_scale(signal, noise) >= 0


def test_an_update_that_lacks_a_quantity_is_skipped_whole():
    smoothed = show(SmoothedNoise(also=("loss",)), 2, signal=1.0, noise=2.0, loss=3.0)
    before = smoothed.state_dict()["means"]
    show(smoothed, 1, signal=9.0, noise=9.0)  # no loss
    show(smoothed, 1, signal=math.nan, noise=9.0, loss=9.0)
    show(smoothed, 1, signal=9.0, noise=math.inf, loss=9.0)
    assert smoothed.state_dict()["means"] == before
    assert (smoothed.num_seen, smoothed.num_skipped) == (2, 3)


def test_is_ready_after_20_updates():
    assert not show(SmoothedNoise(), 19, signal=1.0, noise=1.0).ready
    assert show(SmoothedNoise(), 20, signal=1.0, noise=1.0).ready


def test_before_the_first_update_the_means_are_nan():
    assert all(math.isnan(value) for value in (SmoothedNoise().signal, SmoothedNoise().noise))


def test_resumes():
    class Rule(SmoothedNoise):
        def propose(self, global_batch):
            return self.noise_scale, self.num_seen

    check_resumes(lambda: Rule(0.9, also=("loss",)), updates(90))


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_refuses_a_decay_out_of_range(decay):
    with pytest.raises(UserError, match=rf"decay = {decay}: must lie from 0 to below 1; 0\.99 averages over about 100 updates"):
        SmoothedNoise(decay)
