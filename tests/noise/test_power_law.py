import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from bigbatch.core.checks import UserError
from bigbatch.noise.power_law import FAR, SizedBatch, fit_power_law

Z = stats.norm.ppf(0.975)


def with_interval(size, batch, deviation):
    return SizedBatch(size, batch, batch * math.exp(-Z * deviation), batch * math.exp(Z * deviation))


def test_hand_worked():
    """2 D^0.5 without scatter; at 9 times the largest size three times its critical batch."""
    law = fit_power_law([SizedBatch(1e4, 200), SizedBatch(1e6, 2000), SizedBatch(1e8, 20_000)])
    assert law.power == pytest.approx((0.5, 0.5, 0.5), rel=1e-9)
    assert law.factor == pytest.approx(2, rel=1e-9)
    assert law.scatter == pytest.approx(0, abs=1e-9)
    found = law.at(9e8)
    assert found.critical_batch == pytest.approx((60_000, 60_000, 60_000), rel=1e-9)
    assert (found.size, found.times) == (9e8, 9)


def test_a_scatter_by_hand():
    """In log 10, x = -1, 0, 1 and y = 1, 0, 2: slope 1/2, residuals 1/2, -1, 1/2, so the square of the scatter is 3/2; t_1 = 12.7062."""
    law = fit_power_law([SizedBatch(0.1, 10), SizedBatch(1, 1), SizedBatch(10, 100)])
    assert law.power.value == pytest.approx(0.5, rel=1e-12)
    assert law.scatter == pytest.approx(math.log(10) * math.sqrt(1.5), rel=1e-12)
    assert law.power.upper - 0.5 == pytest.approx(12.706205 * math.sqrt(1.5 / 2), rel=1e-6)
    found = law.at(100).critical_batch  # x = 2: y = 1 + 1/2 * 2, variance 3/2 (1 + 1/3 + 4/2)
    assert math.log10(found.value) == pytest.approx(2, rel=1e-12)
    assert math.log10(found.upper) - 2 == pytest.approx(12.706205 * math.sqrt(1.5 * (1 + 1 / 3 + 2)), rel=1e-6)
    assert math.log10(found.lower) == pytest.approx(2 - 12.706205 * math.sqrt(5), rel=1e-6)


def test_the_papers_power_is_found_again():
    """22.91 D^0.47 (Zhang et al.), with data from 1.7 to 24 billion tokens."""
    sizes = np.geomspace(1.7e9, 24e9, 5)
    law = fit_power_law([SizedBatch(d, 22.91 * d**0.47) for d in sizes])
    assert (law.factor, law.power.value) == pytest.approx((22.91, 0.47), rel=1e-9)


def test_without_intervals_it_is_scipys_regression():
    chance = np.random.default_rng(1)
    x, noise = chance.uniform(5, 20, 7), chance.normal(size=7)
    y = 1 + 0.4 * x + 0.3 * noise
    law = fit_power_law([SizedBatch(math.exp(a), math.exp(b)) for a, b in zip(x, y, strict=True)], confidence=0.9)
    fit, t = stats.linregress(x, y), stats.t.ppf(0.95, 5)
    assert law.power == pytest.approx((fit.slope, fit.slope - t * fit.stderr, fit.slope + t * fit.stderr), rel=1e-9)
    assert math.log(law.factor) == pytest.approx(fit.intercept, rel=1e-9)
    new = 22.0
    half = t * math.sqrt(sum((y - fit.intercept - fit.slope * x) ** 2) / 5 * (1 + 1 / 7 + (new - x.mean()) ** 2 / sum((x - x.mean()) ** 2)))
    found = law.at(math.exp(new)).critical_batch
    assert np.log(found) == pytest.approx(fit.intercept + fit.slope * new + np.array([0, -half, half]), rel=1e-9)
    assert not law.weighted


@pytest.mark.parametrize("scatter", [0.0, 0.6])
def test_with_intervals_it_is_weighted_least_squares(scatter):
    """By matrices, with the tau^2 that scipy finds."""
    chance = np.random.default_rng(3)
    x, own = np.log(np.geomspace(1e5, 1e8, 6)), np.array([0.1, 0.3, 0.2, 0.1, 0.4, 0.2])
    y = 2 + 0.5 * x + (own if scatter else 0.2 * own) * chance.normal(size=6) + scatter * chance.normal(size=6)
    points = [with_interval(math.exp(a), math.exp(b), s) for a, b, s in zip(x, y, own, strict=True)]
    law = fit_power_law(points)
    design = np.stack([np.ones(6), x], 1)

    def fitted(tau2):
        inverse = np.linalg.inv(design.T @ np.diag(1 / (own**2 + tau2)) @ design)
        found = inverse @ design.T @ (y / (own**2 + tau2))
        return found, inverse, float(((y - design @ found) ** 2 / (own**2 + tau2)).sum())

    tau2 = optimize.brentq(lambda v: fitted(v)[2] - 4, 0, 10) if fitted(0)[2] > 4 else 0.0
    assert (tau2 > 0) == (scatter > 0)
    found, inverse, misfit = fitted(tau2)
    assert law.weighted
    assert law.scatter == pytest.approx(math.sqrt(tau2), rel=1e-6)
    assert (math.log(law.factor), law.power.value) == pytest.approx(tuple(found), rel=1e-6)
    times = max(Z, stats.t.ppf(0.975, 4) * math.sqrt(misfit / 4))
    assert times == pytest.approx(Z if not scatter else stats.t.ppf(0.975, 4), rel=1e-6)
    assert law.power.upper - law.power.value == pytest.approx(times * math.sqrt(inverse[1, 1]), rel=1e-6)
    new = np.array([1, math.log(4e8)])
    half = times * math.sqrt(new @ inverse @ new + tau2 + (own**2).mean())
    assert np.log(law.at(4e8).critical_batch) == pytest.approx(new @ found + np.array([0, -half, half]), rel=1e-6)


REPEATED = 400


def covered(seed, *, num, scatter, own, told):
    """How often a new measurement at four times the largest size lies in its interval; the law is 3 D^0.5."""
    chance, inside = np.random.default_rng(seed), 0
    sizes = np.geomspace(1e5, 1e8, num)
    for _ in range(REPEATED):
        deviations = own * np.exp(chance.normal(0, 0.5, num + 1))
        logs = np.log(3 * np.append(sizes, 4e8) ** 0.5) + np.hypot(scatter, deviations) * chance.normal(size=num + 1)
        points = [
            with_interval(d, math.exp(b), s) if told else SizedBatch(d, math.exp(b))
            for d, b, s in zip(sizes, logs[:-1], deviations[:-1], strict=True)
        ]
        found = fit_power_law(points).at(4e8).critical_batch
        inside += found.lower <= math.exp(logs[-1]) <= found.upper
    return inside / REPEATED


@pytest.mark.parametrize(
    ("num", "scatter", "own", "told", "bounds"),
    [
        (3, 0.3, 0.0, False, (0.95, 0.95)),
        (5, 0.3, 0.0, False, (0.95, 0.95)),
        (10, 0.1, 0.0, False, (0.95, 0.95)),
        (5, 0.3, 0.1, True, (0.94, 0.96)),  # tau is estimated by itself, and its own scatter is in no weight
        (5, 0.2, 0.2, True, (0.95, 0.97)),
        (5, 0.0, 0.2, True, (0.95, 0.98)),  # the larger of two half-widths, each of which is right by itself
    ],
)
def test_the_interval_holds_as_often_as_it_says(num, scatter, own, told, bounds):
    """Within three standard errors of a share of 400."""
    share, error = covered(0, num=num, scatter=scatter, own=own, told=told), math.sqrt(0.95 * 0.05 / REPEATED)
    assert bounds[0] - 3 * error <= share <= min(bounds[1] + 3 * error, 0.999)


@given(
    power=st.floats(-1, 2),
    noise=st.lists(st.floats(-1, 1), min_size=3, max_size=6),
    times=st.floats(1e-3, 1e3),
    unit=st.floats(1e-3, 1e3),
)
def test_units_of_sizes_and_batches_do_not_matter(power, noise, times, unit):
    """In thousands of samples, or in tokens: the same law."""
    points = [SizedBatch(10.0 ** (i + 1), 5 * 10 ** (power * i) * math.exp(e)) for i, e in enumerate(noise)]
    scaled = [SizedBatch(unit * p.size, times * p.critical_batch) for p in points]
    one, other = fit_power_law(points), fit_power_law(scaled)
    assert other.power == pytest.approx(one.power, rel=1e-6, abs=1e-6)
    for a, b in zip(one.at(2e7).critical_batch, other.at(2e7 * unit).critical_batch, strict=True):
        assert b == pytest.approx(times * a, rel=1e-4) or b == a


def test_far_beyond_what_was_measured_is_warned_of():
    law = fit_power_law([SizedBatch(1e4, 210), SizedBatch(1e6, 1900), SizedBatch(1e8, 21_000)])
    assert [bool(law.at(1e8 * times).warning) for times in (0.01, 1, FAR, FAR + 0.01, 100)] == [False, False, False, True, True]
    assert law.at(5e8).warning == (
        "5 times the largest size measured, 100,000,000: beyond 4 times a power law of few points is a guess, whatever its interval; "
        "measure once at a size between"
    )
    widths = [math.log(f.upper / f.lower) for f in (law.at(size).critical_batch for size in (1e6, 1e8, 1e9, 1e11))]
    assert widths == sorted(widths)


def test_what_is_only_a_lower_bound_is_left_out_and_told():
    known = [SizedBatch(1e4, 210), SizedBatch(1e6, 1900), SizedBatch(1e8, 21_000)]
    law = fit_power_law([*known, SizedBatch(1e9, math.inf, 30_123, math.inf)])
    assert law.points == tuple(known)
    assert law.notes == (
        "size 1,000,000,000 has no upper end, only at least 30,000: left out, so the law may lie too low; measure there at larger batches",
    )
    assert law.power == fit_power_law(known).power


def test_points_of_which_one_has_no_interval_count_alike():
    points = [with_interval(1e4, 210, 0.1), with_interval(1e6, 1900, 0.3), SizedBatch(1e8, 21_000, 9000, math.inf)]
    law = fit_power_law(points)
    assert law.notes == ("not every point has an interval with two ends: all count alike",)
    assert law.power == fit_power_law([SizedBatch(p.size, p.critical_batch) for p in points]).power
    assert not law.weighted


def test_a_deviation_is_that_of_the_interval():
    assert with_interval(1e4, 210, 0.25).deviation == pytest.approx(0.25, rel=1e-12)
    assert SizedBatch(1, math.e, 1, math.e**2).deviation == pytest.approx(1 / NormalDist().inv_cdf(0.975))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "0 of 0 sizes have a finite critical batch: a factor, a power and a scatter need 3 different ones at least; measure at more"),
        ([(1, 10), (2, 20)], "2 of 2 sizes have a finite critical batch"),
        ([(1, 10), (2, 20), (3, math.inf)], "2 of 3 sizes have a finite critical batch"),
        ([(1, 10), (2, 20), (2, 30), (3, 30)], "size = 2: stands there twice; give each size once"),
        ([(1, 10), (0, 20), (3, 30)], "size = 0: must be a finite number above zero"),
        ([(1, 10), (math.inf, 20), (3, 30)], "size = inf: must be a finite number above zero"),
        ([(1, 10), (2, -20), (3, 30)], "critical_batch = -20: must be a finite number above zero; measure at smaller batches"),
        ([(1, 10), (2, 0), (3, 30)], "critical_batch = 0: must be"),
        ([(1, 10), (2, math.nan), (3, 30)], "critical_batch = nan: must be"),
    ],
)
def test_bad_points(points, message):
    with pytest.raises(UserError, match=message):
        fit_power_law([SizedBatch(*point) for point in points])


def test_bad_sizes_and_confidence():
    points = [SizedBatch(1, 10), SizedBatch(2, 20), SizedBatch(3, 31)]
    with pytest.raises(UserError, match="size = -1: must be a finite number above zero"):
        fit_power_law(points).at(-1)
    with pytest.raises(UserError, match="confidence = 95: must lie between 0 and 1"):
        fit_power_law(points, confidence=95)
