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
from tests.reference import batching as reference

from bigbatch.batching import CABS
from bigbatch.batching.cabs import cabs
from bigbatch.core.checks import UserError


def test_hand_worked():  # 0.1 * 400 / 0.5
    assert cabs(0.1, 400.0, 0.5) == 80.0
    wish = show(CABS(), lr=0.1, noise=400.0, loss=0.5, signal=1.0).propose(64)
    assert wish.global_batch == approx(80.0, rel=1e-12)
    assert wish.reason == "rate 0.1 times noise 400 over loss 0.5"


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_over_100_updates(seed):
    rule, seen = CABS(), updates(100, seed=seed)
    for i, update in enumerate(seen, start=1):
        rule.observe(update)
        if i >= 20:
            expected = reference.cabs(update.lr, [s.noise for s in seen[:i]], [s.loss for s in seen[:i]])
            assert rule.propose(64).global_batch == approx(expected, rel=1e-9), f"seed {seed}"


@given(st.floats(1e-4, 1), st.floats(0, 1e6), st.floats(1e-3, 10), st.floats(0.1, 10))
def test_follows_rate_noise_and_loss(lr, noise, loss, factor):
    batch = cabs(lr, noise, loss)
    assert batch >= 0
    assert cabs(lr * factor, noise, loss) == approx(batch * factor)
    assert cabs(lr, noise * factor, loss) == approx(batch * factor)
    assert cabs(lr, noise, loss * factor) == approx(batch / factor)


def test_the_rate_is_the_last_one_seen():
    rule = show(show(CABS(), lr=0.1, noise=400.0, loss=0.5, signal=1.0), 1, lr=0.2, noise=400.0, loss=0.5, signal=1.0)
    assert rule.propose(64).global_batch == approx(160.0)
    assert show(rule, 1, noise=400.0, loss=0.5, signal=1.0).propose(64).global_batch == approx(160.0)


def test_without_a_rate_it_says_nothing():
    assert show(CABS(), noise=400.0, loss=0.5, signal=1.0).propose(64) is None


def test_a_loss_of_zero_wants_everything_and_a_negative_one_is_refused():
    assert show(CABS(), lr=0.1, noise=4.0, loss=0.0, signal=1.0).propose(64).global_batch == math.inf
    with pytest.raises(UserError, match="loss = -1: CABS divides by the loss and needs one whose lower bound is 0; use another rule"):
        show(CABS(), lr=0.1, noise=4.0, loss=-1.0, signal=1.0).propose(64)


def test_manners():
    check_says_nothing_before_20_updates(CABS(), lr=0.1, noise=400.0, loss=0.5, signal=1.0)
    check_resumes(CABS)
    check_skips_what_was_not_measured(CABS, fields=("signal", "noise", "loss"))
    assert check_survives_a_start_without_signal(CABS(), lr=0.1, loss=0.5) == approx(60.0)
    with pytest.raises(UserError, match="decay = 1: must lie from 0 to below 1"):
        CABS(decay=1)
