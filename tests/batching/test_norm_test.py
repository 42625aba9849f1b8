import math

import numpy as np
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
)
from tests.reference import batching as reference

from bigbatch.batching import NormTest, UpdateMeasurement
from bigbatch.batching.norm_test import norm_test, required_batch
from bigbatch.core.checks import UserError


def test_hand_worked():  # |g_B|^2 = 1 + 8/8 = 2; noise/B = 1
    assert norm_test(8, signal=1.0, noise=8.0, theta=0.8) == 8  # 1 <= 0.64 * 2
    assert norm_test(8, signal=1.0, noise=8.0, theta=0.5) == 16  # 1 > 0.25 * 2: 8 / (0.25 * 2)
    assert norm_test(8, signal=1.0, noise=8.0, theta=0.6) == 12  # 1 > 0.36 * 2: 8 / 0.72 = 11.1
    assert norm_test(8, signal=-1.5, noise=8.0, theta=0.5) == math.inf


def test_hand_worked_wish():
    wish = show(NormTest(theta=0.6), signal=1.0, noise=8.0).propose(8)
    assert wish == (12, "norm test failed, noise scale 8.0 over 20 updates")
    assert show(NormTest(theta=0.6), signal=1.0, noise=8.0).propose(24) == (24, "norm test passed, noise scale 8.0 over 20 updates")


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.9])
def test_equals_the_reference_over_100_updates(theta):
    """Without smoothing, signal and noise of one update are such that |g_B|^2 is what was measured."""
    draw, rule = np.random.default_rng(0), NormTest(theta=theta, decay=0.0)
    grown = 0
    for i in range(120):
        B = int(draw.integers(4, 40))
        gradients = draw.normal(size=(B, 6)) * draw.uniform(0.1, 3) + draw.normal(size=6)
        noise = gradients.var(axis=0, ddof=1).sum()
        sq_norm = (gradients.mean(axis=0) ** 2).sum()
        rule.observe(UpdateMeasurement(B, signal=sq_norm - noise / B, noise=noise))
        if i >= 20:
            expected = reference.norm_test(gradients, theta=theta)
            assert rule.propose(B).global_batch == expected
            grown += expected > B
    assert 0 < grown < 100


@given(st.integers(1, 10_000), st.floats(-10, 10), st.floats(0, 1e4), st.floats(0.05, 0.95))
def test_only_grows_and_what_it_asks_for_would_pass(batch, signal, noise, theta):
    wanted = norm_test(batch, signal=signal, noise=noise, theta=theta)
    assert wanted >= batch
    sq_norm = signal + noise / batch
    if math.isfinite(wanted):
        assert noise / wanted <= theta**2 * sq_norm * (1 + 1e-12)
    assert wanted == batch or wanted == math.inf or noise / (wanted - 1) > theta**2 * sq_norm * (1 - 1e-12), "and one less would not"


@given(st.floats(1.0, 1e4), st.floats(0.3, 0.95))
def test_asked_again_and_again_it_ends_at_the_limit_in_the_docstring(b_simple, theta):
    batch = 1.0
    for _ in range(3000):
        batch = norm_test(batch, signal=1.0, noise=b_simple, theta=theta)
    limit = b_simple * (1 / theta**2 - 1)
    assert limit * (1 - 1e-9) <= max(batch, limit) <= max(limit + 1 / (1 - theta**2), 1) + 1e-6 * limit


def test_a_bound_on_another_variance():  # 12 / 4 = 3 <= 1 * 3;  3 > 0.25 * 3, so ceil(12 / 0.75)
    assert required_batch(4, noise=12.0, sq_norm=3.0, bound=1.0) == 4
    assert required_batch(4, noise=12.0, sq_norm=3.0, bound=0.5) == 16
    assert required_batch(4, noise=0.0, sq_norm=0.0, bound=0.5) == 4
    assert required_batch(4, noise=0.0, sq_norm=-1.0, bound=0.5) == math.inf
    assert required_batch(4, noise=12.0, sq_norm=5e-324, bound=0.5) == math.inf  # whose quarter is zero in floating point


def test_manners():
    check_says_nothing_before_20_updates(NormTest(theta=0.5), signal=1.0, noise=100.0)
    check_resumes(lambda: NormTest(theta=0.5))
    check_skips_what_was_not_measured(lambda: NormTest(theta=0.5))
    assert check_survives_a_start_without_signal(NormTest(theta=0.5)) == approx(math.ceil(300 / 0.25 / (1 + 300 / 64)), abs=1)


@pytest.mark.parametrize("theta", [0, 1.0, -0.5, math.nan])
def test_refuses_a_theta_out_of_range(theta):
    with pytest.raises(UserError, match=f"theta = {theta}: must lie above 0 and below 1, at 1 every batch passes; 0.5 to 0.9 is usual"):
        NormTest(theta=theta)
