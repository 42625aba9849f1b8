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
    updates,
)
from tests.reference.batching import debiased_mean, simigrad_run

from bigbatch.batching import Bounds, SimiGrad, decide
from bigbatch.batching.simigrad import batch_at_similarity, next_batch, similarity
from bigbatch.core.checks import UserError


def test_hand_worked():  # 1 / (1 + 2 * 8 / 16) = 1/2, and back: 2 * 8 * 0.5 / 0.5 = 16
    assert similarity(16, signal=1.0, noise=8.0) == 0.5
    assert batch_at_similarity(8.0, 0.5) == 16.0
    assert batch_at_similarity(8.0, 0.75) == 48.0
    assert show(SimiGrad(target=0.75), signal=1.0, noise=8.0).propose(16) == (
        approx(48.0),
        "halves at cosine 0.500, noise scale 8.0 over 20 updates",
    )


@pytest.mark.parametrize(
    ("batch", "cosine", "after"),
    [(100, 0.4, 110), (5, 0.4, 6), (128, 0.4, 140), (100, 0.6, 90), (5, 0.6, 4), (128, 0.6, 115), (77, 0.5, 77)],
)
def test_the_papers_step(batch, cosine, after):
    assert next_batch(batch, cosine, 0.5) == after


@pytest.mark.parametrize("b_simple", [16.0, 250.0])
def test_the_cosine_is_that_of_two_simulated_halves(b_simple):
    """400 halves of 32 samples in 4,000 dimensions: mean cosine within four standard errors (and 1 % for the ratio's own bias)."""
    draw, d, half, pairs = np.random.default_rng(0), 4000, 32, 400
    mean = draw.normal(size=d)
    mean /= np.linalg.norm(mean)
    halves = mean + draw.normal(size=(2, pairs, d)) * math.sqrt(b_simple / d / half)  # mean gradients: covariance tr(S) / half
    norms = np.linalg.norm(halves, axis=2)
    cosines = (halves[0] * halves[1]).sum(axis=1) / (norms[0] * norms[1])
    expected = similarity(2 * half, signal=1.0, noise=b_simple)
    assert abs(cosines.mean() - expected) <= 4 * cosines.std() / math.sqrt(pairs) + 0.01 * expected
    assert expected == approx(1 / (1 + 2 * b_simple / 64))


def test_equals_the_reference_over_100_updates():
    """The papers' steps, taken with what the estimator says, from below and from above."""
    for first in (8, 5000):
        batch, got = first, []
        for _ in range(100):
            batch = next_batch(batch, similarity(batch, signal=1.0, noise=300.0), 0.4)
            got.append(batch)
        assert got == simigrad_run(first, signal=1.0, noise=300.0, target=0.4, num_updates=100)


@given(st.integers(2, 100_000), st.floats(5.0, 1e4), st.floats(0.1, 0.9))
def test_the_papers_steps_lead_to_where_the_class_wishes(first, b_simple, target):
    wished, batch = batch_at_similarity(b_simple, target), first
    for _ in range(300):
        batch = next_batch(batch, similarity(batch, signal=1.0, noise=b_simple), target)
    assert wished / 1.15 - 2 <= batch <= wished * 1.15 + 2


@given(st.floats(1e-3, 1e6), st.floats(0.01, 0.99))
def test_at_the_wished_batch_the_cosine_is_the_target(b_simple, target):
    assert similarity(batch_at_similarity(b_simple, target), signal=1.0, noise=b_simple) == approx(target, rel=1e-9)


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_a_cosine_grows_with_the_batch_and_stays_one(one, other, signal, noise):
    small, large = (similarity(b, signal=signal, noise=noise) for b in sorted((one, other)))
    assert 0 < small <= large <= 1


def test_decided_now_and_then_the_batch_reaches_the_target():
    rule, batch = show(SimiGrad(target=0.5), signal=1.0, noise=500.0), 64
    for _ in range(10):
        batch, _ = decide(rule.propose(batch), batch, Bounds(64, 8192, 64))
    assert batch == 1024  # 1000, to multiples of 64
    batch = 8192
    for _ in range(10):
        batch, _ = decide(rule.propose(batch), batch, Bounds(64, 8192, 64))
    assert batch == 1024


@pytest.mark.parametrize("seed", range(3))
def test_the_wish_follows_the_smoothed_noise_scale(seed):
    rule, seen = SimiGrad(target=0.5, decay=0.95), updates(100, seed=seed)
    for update in seen:
        rule.observe(update)
    b_simple = debiased_mean([s.noise for s in seen], 0.95) / debiased_mean([s.signal for s in seen], 0.95)
    assert rule.propose(64).global_batch == approx(2 * b_simple), f"seed {seed}"


def test_manners():
    check_says_nothing_before_20_updates(SimiGrad(target=0.5), signal=1.0, noise=100.0)
    check_resumes(lambda: SimiGrad(target=0.5))
    check_skips_what_was_not_measured(lambda: SimiGrad(target=0.5))
    assert check_survives_a_start_without_signal(SimiGrad(target=1 / 3)) == approx(300.0, rel=1e-3)
    assert show(SimiGrad(target=0.5), signal=-1.0, noise=1.0).propose(64) == (math.inf, "no signal above the noise over 20 updates")


@pytest.mark.parametrize("target", [0, 1.0, -0.2, math.nan])
def test_refuses_a_target_out_of_range(target):
    with pytest.raises(UserError, match=f"target = {target}: a cosine must lie above 0 and below 1; at 1/3 the batch is the noise scale"):
        SimiGrad(target=target)
