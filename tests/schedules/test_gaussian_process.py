import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from tests.reference import autowu as reference

from bigbatch.schedules.gaussian_process import Hyper, condition, features, fit, p_of, places, rise


def curve(n, seed):
    chance = np.random.default_rng(seed)
    x = np.sort(chance.uniform(size=n))
    return x, 2 + np.cos(4 * x) + 0.05 * chance.normal(size=n)


def test_hand_worked():
    """One loss of 3 at x = 0 with m = 1, a = 4, noise = 1: f(0) has mean 1 + 2 * 4/5 and variance 4 - 16/5."""
    posterior = condition(np.array([0.0]), np.array([3.0]), Hyper(mean=1.0, scale=4.0, noise=1.0))
    at, far = features([0.0, 1.0])
    assert 1 + at @ posterior.weights == pytest.approx(2.6)
    assert at @ posterior.covariance @ at == pytest.approx(0.8)
    assert far @ posterior.covariance @ far == pytest.approx(4.0, rel=1e-9)  # five lengths away it knows nothing
    assert rise(posterior, at[None], far, jitter=0.2)[0] == pytest.approx(-1.6 / math.sqrt(0.8 + 4 + 0.2), rel=1e-4)
    assert p_of(0.0) == 0.5


@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_features_give_the_kernel(a, b):
    assert features([a])[0] @ features([b])[0] == pytest.approx(math.exp(-((a - b) ** 2) / 0.08), abs=1e-12)


@pytest.mark.parametrize(("n", "seed"), [(3, 0), (30, 1), (100, 2), (300, 3)])
def test_equals_scikit_learn(n, seed):
    x, y = curve(n, seed)
    hyper = fit(x, y)
    kernel = ConstantKernel(hyper.scale) * RBF(0.2) + WhiteKernel(hyper.noise)
    theirs = GaussianProcessRegressor(kernel, optimizer=None).fit(x[:, None], y - hyper.mean)
    mean, covariance = theirs.predict(np.linspace(0, 1, 50)[:, None], return_cov=True)
    posterior, at = condition(x, y, hyper), places(50)
    assert at @ posterior.weights == pytest.approx(mean, abs=1e-6)
    assert at @ posterior.covariance @ at.T == pytest.approx(covariance - hyper.noise * np.eye(50), abs=1e-6)


@pytest.mark.parametrize(("n", "seed"), [(30, 1), (60, 2), (100, 3)])
def test_no_other_mean_scale_or_noise_is_likelier(n, seed):
    x, y = curve(n, seed)
    mine, others = fit(x, y), reference.fit(x, y)
    assert list(mine) == pytest.approx(list(others), rel=0.03)  # the grid's step in the ratio of noise to scale is 0.7 %
    best = reference.log_likelihood(x, y, *others)
    assert reference.log_likelihood(x, y, *mine) == pytest.approx(best, abs=1e-3)
    for field, times in (("mean", 1.05), ("scale", 1.5), ("noise", 1.5)):
        changed = mine._replace(**{field: getattr(mine, field) * times})
        assert reference.log_likelihood(x, y, *changed) < best - 0.02


def test_equal_losses_are_no_trouble():
    x = np.linspace(0, 1, 20)
    hyper = fit(x, np.full(20, 2.0))
    assert hyper.mean == pytest.approx(2.0)
    assert all(math.isfinite(value) for value in hyper)
    assert np.isfinite(condition(x, np.full(20, 2.0), hyper).weights).all()
