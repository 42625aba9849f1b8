import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from tests.reference import autowu as reference

from bigbatch.schedules import gaussian_process
from bigbatch.schedules.gaussian_process import CORRELATIONS, NOISE_RATIOS, Posterior, features, fit, places, rise, whiten


def curve(n, seed, correlation=0.0):
    chance = np.random.default_rng(seed)
    x = np.sort(chance.uniform(size=n))
    noise = chance.normal(size=n)
    for t in range(1, n):
        noise[t] = correlation * noise[t - 1] + math.sqrt(1 - correlation**2) * noise[t]
    return x, 2 + np.cos(4 * x) + 0.05 * noise


def pairs(posteriors):
    """Each pair of correlation and ratio by itself."""
    for one in posteriors:
        for i, chance in enumerate(one.probability):
            rest = [field[..., [i]] for field in one[3:]]
            yield chance, Posterior(one.correlation, np.ones(1), one.axes, *rest)


def test_hand_worked():
    """f(0) - f(1) of a mean of 3 and a variance of 4 + 5 at one ratio; with 0.25 added, 3 / sqrt(9.25) standard deviations."""
    at, far = np.eye(16)[:1], np.eye(16)[1:2]
    weights, variances = np.zeros((16, 1)), np.zeros((16, 1))
    weights[:2, 0], variances[:2, 0] = (3.0, 0.0), (4.0, 5.0)
    certain = Posterior(0.0, np.ones(1), np.eye(16), weights, variances, *np.zeros((3, 1)))
    assert rise(certain, far, at, jitter=0.25)[0, 0] == pytest.approx(3 / math.sqrt(9.25))
    white, log_det = whiten(np.array([[1.0], [2.0], [3.0]]), np.array([0, 1, 3]), 0.6)  # over a gap of 2, c = 0.36
    assert white.ravel() == pytest.approx([1.0, 1.4 / 0.8, (3 - 0.72) / math.sqrt(1 - 0.36**2)])
    assert log_det == pytest.approx(math.log(0.64) + math.log(1 - 0.36**2))


@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_features_give_the_kernel(a, b):
    assert features([a])[0] @ features([b])[0] == pytest.approx(math.exp(-((a - b) ** 2) / 0.08), abs=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_whitened_noise_is_white(correlation):
    """The noise's correlation matrix, whitened on both sides, is the identity; rows left out included."""
    times = np.array([0, 1, 2, 5, 6, 9])
    matrix = correlation ** np.abs(np.subtract.outer(times, times)).astype(float)
    once, log_det = whiten(matrix, times, correlation)
    assert whiten(once.T.copy(), times, correlation)[0] == pytest.approx(np.eye(6), abs=1e-12)
    assert log_det == pytest.approx(np.linalg.slogdet(matrix)[1])


@pytest.mark.parametrize(("n", "seed"), [(3, 0), (30, 1), (100, 2), (300, 3)])
def test_white_noise_equals_scikit_learn(n, seed, monkeypatch):
    monkeypatch.setattr(gaussian_process, "CORRELATIONS", (0.0,))
    x, y = curve(n, seed)
    for _, one in pairs(fit(x, y, np.arange(n))):
        kernel = ConstantKernel(one.scale[0]) * RBF(0.2) + WhiteKernel(one.noise[0])
        theirs = GaussianProcessRegressor(kernel, optimizer=None).fit(x[:, None], y - one.mean[0])
        mean, covariance = theirs.predict(np.linspace(0, 1, 50)[:, None], return_cov=True)
        at = places(50) @ one.axes
        assert (at @ one.weights)[:, 0] == pytest.approx(mean, abs=1e-5)
        assert (at * one.variances[:, 0]) @ at.T == pytest.approx(covariance - one.noise[0] * np.eye(50), abs=1e-5)


@pytest.mark.parametrize(("n", "seed", "correlation"), [(30, 1, 0.0), (60, 2, 0.9), (100, 3, 0.6)])
def test_equals_kernel_matrices(n, seed, correlation):
    """Every pair's mean, scale and probability, and the posterior of f, from the whole covariance of the losses."""
    x, y = curve(n, seed, correlation)
    mine, theirs = list(pairs(fit(x, y, np.arange(n)))), reference.fits(x, y)
    assert len(mine) == len(theirs)
    assert sum(chance for chance, _ in mine) == pytest.approx(1)
    for (chance, one), ((m, a, c, r), their_chance) in zip(mine, theirs, strict=True):
        assert (one.correlation, one.noise[0]) == (c, pytest.approx(r * a, rel=1e-4))
        assert (one.mean[0], one.scale[0], chance) == pytest.approx((m, a, their_chance), rel=1e-4)
        mean, covariance = reference.posterior(x, y, m, a, c, r, np.linspace(0, 1, 50))
        at = places(50) @ one.axes
        assert (at @ one.weights)[:, 0] + one.mean[0] == pytest.approx(mean, abs=1e-5)
        assert (at * one.variances[:, 0]) @ at.T == pytest.approx(covariance, abs=1e-5)


def test_no_other_mean_or_scale_is_likelier():
    x, y = curve(60, 2, 0.6)
    for _, one in pairs(fit(x, y, np.arange(60))):
        m, a, c, r = one.mean[0], one.scale[0], one.correlation, one.noise[0] / one.scale[0]
        best = reference.log_likelihood(x, y, m, a, c, r)
        assert reference.log_likelihood(x, y, m, 1.5 * a, c, r) < best - 0.02
        assert reference.log_likelihood(x, y, 1.05 * m, a, c, r) < best


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_the_correlation_is_found(correlation):
    """Of 300 losses: most of the probability is on the grid's correlations next to it."""
    x, y = curve(300, 5, correlation)
    found = fit(x, y, np.arange(300))
    mean = sum(one.correlation * one.probability.sum() for one in found)
    assert mean == pytest.approx(correlation, abs=0.15)


def test_equal_losses_are_no_trouble():
    x = np.linspace(0, 1, 20)
    for _, one in pairs(fit(x, np.full(20, 2.0), np.arange(20))):
        assert one.mean[0] == pytest.approx(2.0)
        assert all(np.isfinite(field).all() for field in one[1:])
    assert len(CORRELATIONS) * len(NOISE_RATIOS) == 119
