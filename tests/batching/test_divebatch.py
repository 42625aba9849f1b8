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
    show,
    updates,
)
from tests.reference.batching import diversity

from bigbatch.batching import DiveBatch, UpdateMeasurement
from bigbatch.batching.divebatch import divebatch, num_diverse
from bigbatch.core.checks import UserError


def test_hand_worked():  # n D = 1 + 798 / 2 = 400; half of it
    assert num_diverse(2.0, 798.0) == 400.0
    assert divebatch(128, 400.0, delta=0.5, largest=2048) == 200
    assert divebatch(128, 400.0, delta=0.1, largest=2048) == 128  # never smaller
    assert divebatch(128, 401.0, delta=0.5, largest=2048) == 200  # int(200.5)
    assert divebatch(128, math.inf, delta=0.5, largest=2048) == 2048
    assert show(DiveBatch(delta=0.5), signal=2.0, noise=798.0).propose(128) == (200, "400.0 diverse gradients over 20 updates")


def test_an_epoch_ends_with_each_wish():
    rule = show(DiveBatch(delta=1.0), 30, signal=1.0, noise=99.0)
    assert rule.propose(64).global_batch == 100
    assert rule.propose(64) is None, "a new epoch has begun"
    assert show(rule, 25, signal=1.0, noise=499.0).propose(64).global_batch == 500  # nothing left of the epoch before


def test_a_short_epoch_is_joined_to_the_next():
    rule = show(DiveBatch(delta=1.0), 15, signal=1.0, noise=100.0)
    assert rule.propose(64) is None
    assert show(rule, 15, signal=1.0, noise=300.0).propose(64) == (201, "201.0 diverse gradients over 30 updates")


def test_equals_the_reference_over_an_epoch_of_100_updates():
    """From gradients of single samples with weights at rest, signal and noise being those of the epoch: D times n is the same number,
    but for |sum g_i|^2 / n^2, which has tr(S) / n in it.
    """
    draw, batch, d = np.random.default_rng(0), 20, 50
    epoch = draw.normal(size=(100, batch, d)) + draw.normal(size=d) * 0.5
    rule = DiveBatch(delta=1.0)
    for gradients in epoch:
        noise = gradients.var(axis=0, ddof=1).sum()
        rule.observe(UpdateMeasurement(batch, signal=(gradients.mean(axis=0) ** 2).sum() - noise / batch, noise=noise))
    n = 100 * batch
    expected = n * diversity(epoch.reshape(n, d))
    assert rule.propose(1).global_batch == approx(expected, abs=1 + 0.02 * expected)


@given(st.integers(1, 10_000), st.floats(1, 1e8), st.floats(1e-4, 10), st.integers(1, 100_000))
def test_grows_only_and_in_bounds(batch, diverse, delta, largest):
    wanted = divebatch(batch, diverse, delta=delta, largest=largest)
    assert min(batch, largest) <= wanted <= largest
    assert wanted == int(min(max(delta * diverse, batch), largest))
    assert divebatch(batch, diverse, delta=delta) >= batch


def test_without_signal_the_wish_is_infinite_and_negative_noise_is_none():
    assert show(DiveBatch(delta=0.5), signal=-1.0, noise=9.0).propose(64).global_batch == math.inf
    assert show(DiveBatch(delta=0.5), signal=1.0, noise=-9.0).propose(64).global_batch == 64


def test_manners():
    check_says_nothing_before_20_updates(DiveBatch(delta=1.0), signal=1.0, noise=100.0)
    check_resumes(lambda: DiveBatch(delta=1.0), updates(90))
    check_skips_what_was_not_measured(lambda: DiveBatch(delta=1.0), num_skipped=lambda rule: rule.num_skipped)


@pytest.mark.parametrize("delta", [0, -1.0, math.nan])
def test_refuses_a_delta_out_of_range(delta):
    with pytest.raises(UserError, match=f"delta = {delta}: must be a finite number above zero; at 1 the batch is the noise scale"):
        DiveBatch(delta=delta)
