"""The critical batch from branches: exact curves, a quadratic whose critical batch is known, the test in a fixed order, bad input."""

import math

import numpy as np
import pytest
from tests.noise.quadratic import Quadratic

from bigbatch.core.checks import UserError
from bigbatch.noise.branches import Branches, effective_samples, excess, expected_factor, largest_held, local_critical_batch


def exact(critical_batch, power, *, batches=(64, 256, 1024), windows=2, gain=0.1):
    points = [(64, 500), *((batch, 1000) for batch in batches)]
    return [Branches(b, n, (2.0 - gain * (n / 1000 / (1 + b / critical_batch)) ** power,) * windows) for b, n in points]


def test_samples_at_the_critical_batch_are_worth_half():
    assert effective_samples(1000, 300, 300) == 500
    assert effective_samples(1000, 100, 300) == pytest.approx(750)


@pytest.mark.parametrize("power", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("critical_batch", [100, 400, 3000])
def test_an_exact_curve_gives_its_critical_batch_power_and_gain(critical_batch, power):
    found = local_critical_batch(2.0, exact(critical_batch, power))
    assert found.critical_batch.value == pytest.approx(critical_batch, rel=0.03)
    assert found.power == pytest.approx(power, abs=0.02)
    assert found.gain == pytest.approx(0.1, rel=0.03)
    assert found.critical_batch.lower <= found.critical_batch.value <= found.critical_batch.upper


def test_gains_that_do_not_fall_with_the_batch_have_no_upper_bound():
    windows = [0.1, 0.101, 0.099]
    branches = [Branches(64, 500, tuple(2 - 0.6 * w for w in windows))]
    branches += [Branches(b, 1000, tuple(2 - w for w in windows)) for b in (64, 256, 1024)]
    assert local_critical_batch(2.0, branches).critical_batch.upper == math.inf


def test_the_interval_holds_the_critical_batch_of_a_quadratic_in_nine_of_ten_studies_and_more():
    quadratic = Quadratic()
    studies = quadratic.studies(samples=512, multiples=(1, 4, 16), windows=3, repeats=150, seed=5)
    found = [local_critical_batch(quadratic.start_loss, study).critical_batch for study in studies]
    covered = np.mean([each.lower <= quadratic.critical_batch <= each.upper for each in found])
    assert covered > 0.9 - 2 * math.sqrt(0.9 * 0.1 / 150)
    assert np.median([each.value for each in found]) == pytest.approx(quadratic.critical_batch, rel=0.4)
    bounded = [each for each in found if each.lower > 0 and math.isfinite(each.upper)]
    assert len(bounded) > 100


def test_a_batch_that_is_worse_by_the_tolerance_is_seldom_called_held():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        window = rng.normal(2.0, 0.1, 4)  # common to both: the test is of pairs
        larger = Branches(128, 1000, tuple(window + 0.01 + rng.normal(0, 0.003, 4)))
        held += largest_held([Branches(64, 1000, tuple(window)), larger], tolerance=0.01) == 128
    assert held / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert held > 20


def test_the_first_batch_that_fails_ends_the_test():
    losses = {64: (2.0, 2.1), 128: (2.2, 2.3), 256: (2.0, 2.1)}
    branches = [Branches(batch, 1000, ends) for batch, ends in losses.items()]
    assert largest_held(branches, tolerance=0.01) == 64
    assert largest_held(branches[::2], tolerance=0.01) == 256


def test_one_window_gives_an_estimate_without_an_interval_and_no_test():
    branches = exact(400, 0.6, windows=1)
    found = local_critical_batch(2.0, branches).critical_batch
    assert found.value == pytest.approx(400, rel=0.03)
    assert math.isnan(found.lower)
    assert math.isnan(found.upper)
    assert largest_held(branches[1:], tolerance=0.01) is None


def test_the_bound_of_an_excess_is_student_s():
    value, bound = excess(Branches(128, 1000, (2.03, 2.05, 2.07)), Branches(64, 1000, (2.0, 2.0, 2.0)))
    assert value == pytest.approx(0.05)
    assert bound == pytest.approx(0.05 + 2.919986 * 0.02 / math.sqrt(3), rel=1e-5)


def test_a_branch_that_diverged_counts_as_no_gain_and_as_not_held():
    branches = exact(400, 0.6)
    diverged = [*branches[:-1], Branches(1024, 1000, (math.nan, 2.0))]
    assert local_critical_batch(2.0, diverged).critical_batch.value < 200
    assert largest_held(diverged[1:], tolerance=10.0) == 256


def test_what_is_expected_beforehand_is_about_what_comes():
    quadratic = Quadratic()
    studies = quadratic.studies(samples=1024, multiples=(1, 4, 16), windows=5, repeats=60, seed=1)
    first = np.array([study[1].losses for study in studies])
    spread = float(np.mean(first.std(axis=1, ddof=1)))
    expected = expected_factor(quadratic.start_loss - float(first.mean()), spread, [16, 64, 256], windows=5)
    ends = [local_critical_batch(quadratic.start_loss, study).critical_batch for study in studies]
    median = float(np.median([math.sqrt(each.upper / each.lower) for each in ends if each.lower > 0 and math.isfinite(each.upper)]))
    assert median / 3 < expected < 3 * median
    assert expected_factor(0.0, 0.1, [16, 64], windows=3) == math.inf
    assert expected_factor(0.03, 0.002, [16, 64], windows=1) == math.inf


def test_the_expected_factor_is_the_delta_method_s():
    batches, samples = np.array([64, 64, 256, 1024.0]), np.array([0.5, 1, 1, 1])
    at = np.array([1.0, 0.6, math.log(256)])

    def gains(parameters):
        scale, power, b = parameters
        shape = (samples / (1 + batches / math.exp(b))) ** power
        return 0.03 * scale * shape / ((1 / (1 + 64 / 256)) ** 0.6)

    steps = 1e-6 * np.eye(3)
    jacobian = np.stack([(gains(at + step) - gains(at - step)) / 2e-6 for step in steps], axis=1)
    covariance = 0.002**2 / 3 * np.linalg.inv(jacobian.T @ jacobian)
    t = 4.302653  # Student's 97.5 % at 2 degrees
    assert expected_factor(0.03, 0.002, [64, 256, 1024], windows=3) == pytest.approx(math.exp(t * covariance[2, 2] ** 0.5), rel=1e-4)


def test_where_half_the_samples_gain_as_much_the_prior_keeps_the_estimate_sane():
    losses = {  # of text/gpt after half its run, as measured: the shorter branch was lucky
        (16, 199): (1.5348, 1.5294, 1.5292),
        (16, 399): (1.525, 1.5183, 1.5395),
        (32, 399): (1.5274, 1.5266, 1.5327),
        (64, 399): (1.5435, 1.542, 1.5424),
    }
    branches = [Branches(batch, n, ends) for (batch, n), ends in losses.items()]
    found = local_critical_batch(1.5690, branches)
    assert found.critical_batch.value > 2
    assert 0.3 < found.power < 0.6


@pytest.mark.parametrize(
    ("branches", "words"),
    [
        (exact(400, 0.6)[:2], "three at least"),
        ([Branches(64, n, (1.9, 1.9)) for n in (1000, 500, 250)], "two batches or more"),
        ([*exact(400, 0.6)[:-1], Branches(1024, 1000, (1.9,))], "each window"),
        ([Branches(b, 1000, (math.nan, math.nan)) for b in (64, 128, 256)], "all branches diverged"),
        ([Branches(b, 1000, (2.1, 2.2)) for b in (64, 128, 256)], "no branch is better than the checkpoint"),
        ([Branches(b, 0, (1.9, 1.9)) for b in (64, 128, 256)], "samples"),
    ],
)
def test_bad_input_is_refused(branches, words):
    with pytest.raises(UserError, match=words):
        local_critical_batch(2.0, branches)
