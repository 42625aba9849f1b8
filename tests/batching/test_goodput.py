import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import approx, check_resumes, check_says_nothing_before_20_updates, check_skips_what_was_not_measured, show
from tests.reference.batching import best_goodput, debiased_mean

from bigbatch.batching import Goodput, UpdateMeasurement
from bigbatch.batching.adascale import gain
from bigbatch.batching.goodput import UpdateTime, best_batch, efficiency, fit_update_time, goodput
from bigbatch.core.checks import UserError


def test_hand_worked():
    """300 samples at alpha 1 s and beta 5 ms: 2.5 s, 120 a second; worth (100 + 100) / (100 + 300) = 1/2 each."""
    assert efficiency(100.0, 100, 300) == 0.5
    assert UpdateTime(1.0, 0.005).seconds(300) == 2.5
    assert goodput(100.0, 100, 300, UpdateTime(1.0, 0.005)) == approx(60.0, rel=1e-12)
    assert efficiency(math.inf, 100, 300) == 1.0
    assert efficiency(0.0, 100, 300) == approx(1 / 3)


def test_hand_worked_fit():
    """Times 2 s at 2 samples and 3 s and 3 s at 4: alpha 1, beta 1/2. Falling times: their mean. A line through below zero: through 0."""
    assert fit_update_time([(2, 1, 2.0), (4, 2, 6.0)]) == approx((1.0, 0.5))
    assert fit_update_time([(2, 1, 3.0), (4, 1, 1.0)]) == (2.0, 0.0)
    assert fit_update_time([(2, 1, 1.0), (4, 1, 3.0)]) == approx((0.0, (2 * 1 + 4 * 3) / (4 + 16)))


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(1e-3, 10)), min_size=2, max_size=30))
def test_the_fit_is_least_squares_where_that_is_not_negative(timed):
    if len({m for m, _ in timed}) < 2:
        return
    sizes, times = np.array([m for m, _ in timed], dtype=float), np.array([t for _, t in timed])
    alpha, beta = fit_update_time((m, 1, t) for m, t in timed)
    assert alpha >= 0
    assert beta >= 0

    def loss(a, b):
        return ((a + b * sizes - times) ** 2).sum()

    best = loss(alpha, beta)
    for a, b in [
        (alpha * 1.01, beta),
        (alpha, beta * 1.01),
        (alpha * 0.99, beta),
        (alpha, beta * 0.99),
        (alpha + 1e-3, beta),
        (alpha, beta + 1e-6),
    ]:
        assert best <= loss(a, b) * (1 + 1e-9) + 1e-12


@given(st.floats(0, 1e5), st.integers(1, 500), st.floats(1, 100), st.floats(1e-4, 1), st.floats(1e-6, 1e-2))
def test_the_best_batch_equals_the_reference_and_stays_in_bounds(phi, base, times, alpha, beta):
    largest = int(base * times)
    time = UpdateTime(alpha, beta)
    got = best_batch(phi, base, largest, time)
    assert base * (1 - 1e-9) <= got <= largest * (1 + 1e-9)
    expected = best_goodput(phi, base, largest, alpha, beta)
    assert goodput(phi, base, got, time) == approx(goodput(phi, base, expected, time), rel=1e-9)
    assert goodput(phi, base, got, time) >= goodput(phi, base, base, time)


def test_more_noise_or_more_overhead_never_makes_it_smaller():
    by_noise = [best_batch(phi, 64, 8192, UpdateTime(0.1, 0.001)) for phi in (0, 10, 100, 1000, 1e4, math.inf)]
    by_overhead = [best_batch(500.0, 64, 8192, UpdateTime(alpha, 0.001)) for alpha in (0, 0.01, 0.1, 1, 10)]
    for batches in (by_noise, by_overhead):
        assert batches == sorted(batches)
        assert batches[0] < batches[-1]


@given(st.floats(0, 1e6), st.integers(1, 1000), st.floats(1, 100))
def test_efficiency_is_adascales_gain_over_the_multiple(phi, base, times):
    expected = gain(1.0, phi, base, base * times) / times
    assert efficiency(phi, base, base * times) == approx(expected, rel=1e-9)
    assert 0 < efficiency(phi, base, base * times) <= 1


def test_learns_what_an_update_costs_from_two_sizes():
    rule = show(Goodput(base_batch=64, largest=8192), signal=1.0, noise=500.0, seconds=0.1 + 0.001 * 64)
    assert rule.time is None
    assert rule.propose(64) == (128, "another size, to learn what an update costs")
    show(rule, 5, global_batch=128, signal=1.0, noise=500.0, seconds=0.1 + 0.001 * 128)
    assert rule.time == approx((0.1, 0.001))
    expected = best_goodput(500.0, 64, 8192, 0.1, 0.001)
    assert rule.propose(128).global_batch == approx(expected, rel=1e-9)
    assert rule.propose(128).reason == "most goodput at 0.1 s an update and 0.001 s a sample, noise scale 500.0 over 25 updates"


def test_learns_from_a_smaller_size_where_twice_is_out_of_bounds():
    assert show(Goodput(base_batch=64, largest=150), 20, global_batch=128, signal=1.0, noise=9.0).propose(128).global_batch == 64
    assert show(Goodput(base_batch=100, largest=150), 20, global_batch=128, signal=1.0, noise=9.0).propose(128).global_batch == 100


def test_a_given_cost_is_used_as_it_is():
    rule = show(Goodput(base_batch=64, largest=8192, alpha_s=0.1, beta_s_per_sample=0.001), signal=1.0, noise=500.0, seconds=9.0)
    show(rule, 5, global_batch=128, signal=1.0, noise=500.0, seconds=7.0)
    assert rule.propose(64).global_batch == approx(best_goodput(500.0, 64, 8192, 0.1, 0.001), rel=1e-9)


def test_equals_the_reference_over_100_updates():
    draw, rule = np.random.default_rng(0), Goodput(base_batch=32, largest=4096, decay=0.9)
    signals, noises, rows = [], [], []
    for i in range(100):
        batch = int(draw.choice([32, 64, 128, 256]))
        seconds = 0.05 + 0.0005 * batch + float(draw.normal(0, 0.002))
        signals.append(float(draw.normal(1, 0.3)))
        noises.append(float(draw.normal(500, 50)))
        rows.append((batch, seconds))
        rule.observe(UpdateMeasurement(batch, signal=signals[-1], noise=noises[-1], seconds=seconds))
        if i >= 19:
            beta, alpha = np.polyfit([b for b, _ in rows], [s for _, s in rows], 1)
            phi = debiased_mean(noises, 0.9) / debiased_mean(signals, 0.9)
            assert rule.propose(batch).global_batch == approx(best_goodput(phi, 32, 4096, alpha, beta), rel=1e-6)


def test_without_signal_it_is_a_matter_of_throughput():
    rule = show(Goodput(base_batch=64, largest=8192, alpha_s=0.1, beta_s_per_sample=0.001), signal=-1.0, noise=5.0)
    assert rule.propose(64).global_batch == approx(8192)
    assert 64 <= show(rule, 2000, signal=1.0, noise=500.0).propose(64).global_batch < 8192


def test_an_update_that_was_not_timed_or_not_measured():
    rule = show(Goodput(base_batch=64, largest=8192), 3, signal=1.0, noise=5.0)
    assert rule.state_dict()["timed"] == []
    show(rule, 2, seconds=1.0)
    assert rule.state_dict()["timed"] == [[64, 2, 2.0]]
    assert rule.smoothed.num_skipped == 2


def test_manners():
    def make():
        return Goodput(base_batch=64, largest=8192)

    draw = np.random.default_rng(0)
    seen = [
        UpdateMeasurement(
            int(draw.choice([64, 128])),
            signal=float(draw.normal(1, 1)),
            noise=float(draw.normal(500, 50)),
            seconds=float(draw.uniform(0.1, 0.2)),
        )
        for _ in range(90)
    ]
    check_resumes(make, seen)
    check_says_nothing_before_20_updates(make(), signal=1.0, noise=100.0, seconds=0.1)
    check_skips_what_was_not_measured(lambda: Goodput(base_batch=64, largest=8192, alpha_s=0.1, beta_s_per_sample=0.001))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_batch": 0}, "base_batch = 0: must be a finite number above zero"),
        ({"largest": 32}, "largest = 32: must be at least base_batch = 64; give a larger one"),
        ({"alpha_s": 0.1}, "alpha_s = 0.1, beta_s_per_sample = None: the two go together; give both, or neither to fit them"),
        ({"alpha_s": -1.0, "beta_s_per_sample": 1.0}, "neither may be negative, nor both zero; give what was measured"),
        ({"alpha_s": 0.0, "beta_s_per_sample": 0.0}, "neither may be negative, nor both zero; give what was measured"),
        ({"decay": 1.0}, "decay = 1.0: must lie from 0 to below 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        Goodput(**{"base_batch": 64, "largest": 1024, **arguments})
