import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import (
    approx,
    check_resumes,
    check_says_nothing_before_20_updates,
    check_skips_what_was_not_measured,
    check_survives_a_start_without_signal,
    show,
    updates,
)
from tests.reference.batching import noise_scale_batch

from bigbatch.batching import NoiseScaleRule
from bigbatch.batching.noise_scale import batch_of_noise_scale
from bigbatch.core.checks import UserError


def test_hand_worked():  # B_simple = 800 / 2 = 400; sqrt(100 * 400) = 200
    wish = show(NoiseScaleRule(exchange_rate=100.0), signal=2.0, noise=800.0).propose(64)
    assert wish.global_batch == approx(200.0, rel=1e-12)
    assert wish.reason == "noise scale 400.0 over 20 updates"


def test_where_an_update_is_worth_the_noise_scale_the_batch_is_the_noise_scale():
    assert batch_of_noise_scale(400.0, 400.0) == 400.0


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(0.1, 10))
def test_no_other_batch_costs_less(noise_scale, exchange_rate, factor):
    """Samples + r updates, where a batch of B takes (1 + B_noise / B) updates and so B + B_noise samples."""

    def cost(batch):
        return (batch + exchange_rate) * (1 + noise_scale / batch)

    best = batch_of_noise_scale(noise_scale, exchange_rate)
    assert cost(best) <= cost(best * factor) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_over_100_updates(seed):
    rule, seen = NoiseScaleRule(exchange_rate=64.0, decay=0.9), updates(100, seed=seed)
    signals, noises = [s.signal for s in seen], [s.noise for s in seen]
    compared = 0
    for i, update in enumerate(seen, start=1):
        rule.observe(update)
        wish = rule.propose(64)
        if wish is not None and math.isfinite(wish.global_batch):
            expected = noise_scale_batch(signals[:i], noises[:i], exchange_rate=64.0, decay=0.9)
            assert wish.global_batch == approx(expected, rel=1e-9), f"seed {seed}"
            compared += 1
    assert compared > 70


def test_manners():
    check_says_nothing_before_20_updates(NoiseScaleRule(exchange_rate=64.0), signal=1.0, noise=100.0)
    check_resumes(lambda: NoiseScaleRule(exchange_rate=64.0))
    check_skips_what_was_not_measured(lambda: NoiseScaleRule(exchange_rate=64.0))


def test_without_signal_the_wish_is_infinite_until_there_is_one():
    assert show(NoiseScaleRule(exchange_rate=64.0), signal=-1.0, noise=9.0).propose(64) == (
        math.inf,
        "no signal above the noise over 20 updates",
    )
    assert check_survives_a_start_without_signal(NoiseScaleRule(exchange_rate=300.0)) == approx(300.0, rel=1e-3)


@pytest.mark.parametrize("exchange_rate", [0, -1.0, math.inf])
def test_refuses_an_exchange_rate_out_of_range(exchange_rate):
    with pytest.raises(UserError, match=f"exchange_rate = {exchange_rate}: must be a finite number above zero; give the samples that"):
        NoiseScaleRule(exchange_rate=exchange_rate)
    with pytest.raises(UserError, match="decay = 1.0: must lie from 0 to below 1"):
        NoiseScaleRule(exchange_rate=1.0, decay=1.0)
