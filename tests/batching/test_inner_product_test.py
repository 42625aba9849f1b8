import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import (
    check_resumes,
    check_says_nothing_before_20_updates,
    check_skips_what_was_not_measured,
    check_survives_a_start_without_signal,
    show,
)
from tests.reference import batching as reference

from bigbatch.batching import InnerProductTest, UpdateMeasurement
from bigbatch.batching.inner_product_test import inner_product_test
from bigbatch.batching.norm_test import norm_test
from bigbatch.core.checks import UserError


def test_hand_worked():
    """|g|^2 = 1 + 12/4 = 4, so along 8 needs 8 / (theta^2 4) and across 4 needs 4 / (nu^2 4)."""
    given_ = {"signal": 1.0, "noise": 12.0, "noise_along": 8.0}
    assert inner_product_test(4, **given_, theta=0.5, nu=5.84) == 8
    assert inner_product_test(4, **given_, theta=0.9, nu=0.25) == 16
    assert inner_product_test(4, **given_, theta=0.5, nu=0.25) == 16  # the larger of the two
    assert inner_product_test(4, **given_) == 4  # 8/4 <= 0.81 * 4, 4/4 <= 34 * 4
    assert inner_product_test(4, signal=-4.0, noise=12.0, noise_along=8.0) == math.inf


def test_hand_worked_wish():  # 8 / (0.52^2 * 4) = 7.4
    rule = show(InnerProductTest(theta=0.52), signal=1.0, noise=12.0, noise_along=8.0)
    assert rule.propose(4) == (8, "inner product test failed, noise scale 12.0 over 20 updates")
    assert rule.propose(40) == (40, "inner product test passed, noise scale 12.0 over 20 updates")


@pytest.mark.parametrize(("theta", "nu"), [(0.9, 5.84), (0.3, 5.84), (0.9, 0.5), (0.3, 0.5)])
def test_equals_the_reference_over_100_updates(theta, nu):
    draw, rule = np.random.default_rng(0), InnerProductTest(theta=theta, nu=nu, decay=0.0)
    grown = 0
    for i in range(120):
        B, direction = int(draw.integers(4, 40)), draw.normal(size=6)
        gradients = draw.normal(size=(B, 6)) * draw.uniform(0.1, 3, size=6) + draw.normal(size=6)
        noise = gradients.var(axis=0, ddof=1).sum()
        along = (gradients @ direction).var(ddof=1) / (direction @ direction)
        rule.observe(UpdateMeasurement(B, signal=(gradients.mean(axis=0) ** 2).sum() - noise / B, noise=noise, noise_along=along))
        if i >= 20:
            expected = reference.inner_product_test(gradients, direction, theta=theta, nu=nu)
            assert rule.propose(B).global_batch == expected
            grown += expected > B
    assert grown > 0 or theta == 0.9


@given(st.integers(1, 10_000), st.floats(-10, 10), st.floats(0, 1e4), st.floats(0, 1), st.floats(0.05, 0.95), st.floats(0.05, 9))
def test_only_grows_and_never_beyond_what_the_norm_test_with_the_tighter_bound_asks(batch, signal, noise, share, theta, nu):
    along = share * noise
    wanted = inner_product_test(batch, signal=signal, noise=noise, noise_along=along, theta=theta, nu=nu)
    assert wanted >= batch
    assert wanted <= norm_test(batch, signal=signal, noise=noise, theta=min(theta, nu))


def test_noise_in_one_direction_only_is_the_norm_test():
    assert inner_product_test(8, signal=1.0, noise=8.0, noise_along=8.0, theta=0.5) == norm_test(8, signal=1.0, noise=8.0, theta=0.5)


def test_a_negative_mean_along_counts_as_none_and_one_above_the_noise_as_all():
    below = show(InnerProductTest(theta=0.5, nu=0.5), signal=1.0, noise=11.0, noise_along=-3.0).propose(4)
    assert below.global_batch == inner_product_test(4, signal=1.0, noise=11.0, noise_along=0.0, theta=0.5, nu=0.5) == 12
    above = show(InnerProductTest(theta=0.5, nu=0.5), signal=1.0, noise=11.0, noise_along=30.0).propose(4)
    assert above.global_batch == inner_product_test(4, signal=1.0, noise=11.0, noise_along=11.0, theta=0.5, nu=0.5) == 12


def test_manners():
    check_says_nothing_before_20_updates(InnerProductTest(), signal=1.0, noise=100.0, noise_along=5.0)
    check_resumes(InnerProductTest)
    check_skips_what_was_not_measured(InnerProductTest, fields=("signal", "noise", "noise_along"))
    check_survives_a_start_without_signal(InnerProductTest(), noise_along=20.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta": 1.0}, "theta = 1.0: must lie above 0 and below 1, at 1 every batch passes"),
        ({"nu": 0}, "nu = 0: must be a finite number above zero; the paper's is 5.84"),
        ({"decay": 1}, "decay = 1: must lie from 0 to below 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        InnerProductTest(**arguments)
