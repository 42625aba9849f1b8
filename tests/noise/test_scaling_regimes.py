"""The three regimes: curves made by the formula are found again; other fits of the same curve, and draws with known odds, agree."""

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from bigbatch.noise.scaling_regimes import Interval, fewest_updates, fit_regimes, power_of_batch

BATCHES = [2**i for i in range(3, 14)]


def curve(batch, first, second, level=200.0):
    """By hand: halves with each doubling up to `first`, by a root to `second`, then stays."""
    if batch <= first:
        return level * first / batch
    return level * math.sqrt(first / min(batch, second))


@pytest.mark.parametrize(("first", "second"), [(64, 1024), (8, 256), (128, 8192), (512, 512), (8, 8)])
def test_a_curve_of_the_formula_is_found_again(first, second):
    found = fit_regimes({batch: [curve(batch, first, second)] * 3 for batch in BATCHES})
    assert found.perfect_until.value == pytest.approx(first)
    assert found.maximal_from.value == pytest.approx(second)
    assert found.level == pytest.approx(200)
    assert found.scatter == pytest.approx(0, abs=1e-9)
    assert found.perfect_until.lower == found.perfect_until.upper == pytest.approx(first)
    for batch in (4, 50, 700, 20_000):
        assert found.updates(batch) == pytest.approx(curve(batch, first, second))


def test_knees_are_those_of_least_squares_by_another_way():
    chance = np.random.default_rng(1)
    steps = [curve(batch, 90, 1500) * math.exp(0.05 * chance.normal()) for batch in BATCHES]
    found = fit_regimes({batch: [value] for batch, value in zip(BATCHES, steps, strict=True)})
    x, y = np.log2(BATCHES), np.log2(steps)

    def model(x, c, low, high):
        return np.interp(x, [low - 10, low, high, high + 10], [c + 10, c, c - (high - low) / 2, c - (high - low) / 2])

    best, _ = curve_fit(model, x, y, p0=[math.log2(200), 6.5, 10.5])
    assert math.log2(found.perfect_until.value) == pytest.approx(best[1], abs=0.13)
    assert math.log2(found.maximal_from.value) == pytest.approx(best[2], abs=0.13)
    rest = math.sqrt(np.square(y - model(x, *best)).sum() / (len(x) - 3)) * math.log(2)
    assert found.scatter == pytest.approx(rest, rel=0.1)


def test_only_trials_that_reached_count_and_four_batches_are_needed():
    steps = {8: [math.inf, 400.0, 500.0], 16: [200.0], 32: [], 64: [math.inf], 128: [100.0]}
    assert fit_regimes(steps) is None
    assert fit_regimes({**steps, 256: [90.0]}) is not None
    assert fewest_updates([]) is None
    assert fewest_updates([math.inf, math.inf]) is None


def test_the_interval_is_that_of_draws_with_known_odds():
    """Of ten trials, a draw of ten lacks the m best with (1 - m/10)^10: 11 % for two, 0.6 % for four."""
    assert fewest_updates([100.0, 110.0, *[200.0] * 8]) == Interval(100.0, 100.0, 200.0)
    assert fewest_updates([100.0, 110.0, 120.0, 120.0, *[200.0] * 6]) == Interval(100.0, 100.0, 120.0)
    assert fewest_updates([100.0, *[math.inf] * 9]).upper is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_the_rate_with_the_batch(power):
    steps = {batch: [50.0, 40.0, math.inf] for batch in BATCHES}
    rates = {batch: [9.0, 0.1 * (batch / 8) ** power, 7.0] for batch in BATCHES}
    found = power_of_batch(steps, rates)
    assert found.value == pytest.approx(power)
    assert found.lower <= power + 1e-9
    assert found.upper >= power - 1e-9
    slope = np.polynomial.Polynomial.fit(np.log(BATCHES), np.log([rates[batch][1] for batch in BATCHES]), 1).convert().coef[1]
    assert found.value == pytest.approx(slope, abs=1e-9)
    assert power_of_batch({8: [1.0], 16: [1.0]}, {8: [1.0], 16: [1.0]}) is None
