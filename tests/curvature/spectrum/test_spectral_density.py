import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from tests.curvature.operators import Diagonal

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.operator import Dense
from bigbatch.curvature.spectrum.spectral_density import SpectralDensity, spectral_density


def moments(values):
    values = np.asarray(values, dtype=float)
    return [np.mean(values**p) for p in (1, 2, 3, 4)]


def of(density):
    return [density.moment(p) for p in (1, 2, 3, 4)]


def test_hand_worked():
    """Both eigenvalues of [[2, 1], [1, 2]] weigh a half; the curve is half a Gaussian at each."""
    density = spectral_density(Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()), starts=1)
    np.testing.assert_allclose(density.nodes, [[1, 3]])
    np.testing.assert_allclose(density.weights, [[0.5, 0.5]])
    curve = density.curve(num_points=3, width=0.5)
    np.testing.assert_allclose(curve.x, [-1, 2, 5])
    middle = 2 * 0.5 * math.exp(-2) / (0.5 * math.sqrt(2 * math.pi))
    assert curve.mean[1] == pytest.approx(middle)
    assert np.isnan(curve.low).all()
    assert np.isnan(curve.high).all()


@pytest.fixture(scope="module")
def spectra(case):
    return {name: torch.linalg.eigvalsh(getattr(case, name)) for name in ("hessian", "gauss_newton")}


def test_four_moments_of_gauss_newton_to_1_percent(spectra):
    density = spectral_density(Diagonal(spectra["gauss_newton"]), steps=300, starts=2)
    np.testing.assert_allclose(of(density), moments(spectra["gauss_newton"]), rtol=0.01)
    assert density.num_found > 100


def test_four_moments_of_a_hessian_to_1_percent(spectra):
    """The first, nearly zero between eigenvalues of both signs, to 1 % of their mean size."""
    values = spectra["hessian"]
    density = spectral_density(Diagonal(values), steps=700, starts=2)
    exact = moments(values)
    np.testing.assert_allclose(of(density)[1:], exact[1:], rtol=0.01)
    assert abs(density.moment(1) - exact[0]) < 0.01 * float(values.abs().mean())


@pytest.mark.parametrize("name", ["hessian", "gauss_newton"])
def test_moments_are_unbiased_and_their_errors_true(spectra, name):
    exact = moments(spectra[name])
    found = [spectral_density(Diagonal(spectra[name]), steps=40, starts=8, seed=seed) for seed in range(20)]
    for p, expected in zip((1, 2, 3, 4), exact, strict=True):
        values, errors = np.array([(d.moment(p), d.moment_error(p)) for d in found]).T
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / math.sqrt(len(found))
        assert 0.5 < values.std(ddof=1) / np.sqrt(np.square(errors).mean()) < 2


def test_found_eigenvalues_weigh_one_nth(spectra):
    density = spectral_density(Diagonal(spectra["hessian"]), steps=60, starts=3)
    assert density.nodes.shape == density.weights.shape == (3, 60)
    assert density.products == 60 + 2 * (60 - density.num_found)
    np.testing.assert_allclose(density.weights.sum(1), 1)
    assert (density.weights >= 0).all()
    top = spectra["hessian"].flip(0)[:5].numpy()
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        np.testing.assert_allclose(nodes[::-1][:5], top, rtol=1e-6)
        np.testing.assert_allclose(weights[::-1][:5], 1 / 1229)


def test_of_a_network_itself(case):
    operator = Hessian(case.model, case.loss, case.batches)
    density = spectral_density(operator, steps=12, starts=2)
    dense = spectral_density(Dense(case.hessian), steps=12, starts=2)
    np.testing.assert_allclose(density.nodes, dense.nodes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("values", "found"), [(range(30), 30), ([0.0] * 300 + list(range(1, 31)), 30), ([3.0] * 200, 0), ([5.0] * 150 + [1.0] * 250, 0)]
)
def test_repeated_eigenvalues(values, found):
    """Zeros of a matrix of low rank, say: what is found once has its weight, what repeats has its own. Each row is exact, or unbiased."""
    density = spectral_density(Diagonal(values), steps=100, starts=6)
    assert density.num_found == found
    np.testing.assert_allclose(density.weights.sum(1), 1)
    np.testing.assert_allclose(of(density), moments(values), rtol=1e-9 if found else 0.1)


def test_pairs_are_told_from_single_eigenvalues():
    values = np.repeat(np.linspace(1, 2, 40) ** 3, 2)
    density = spectral_density(Diagonal([*values, *[0.0] * 400]), steps=60, starts=4)
    assert density.num_found == 0
    assert abs(density.moment(1) / moments([*values, *[0.0] * 400])[0] - 1) < 0.5


def test_the_curve(spectra):
    density = spectral_density(Diagonal(spectra["hessian"]), steps=50, starts=4)
    curve = density.curve(num_points=4000)
    assert trapezoid(curve.mean, curve.x) == pytest.approx(1, abs=1e-3)
    assert curve.width == pytest.approx(np.ptp(density.nodes) / 100)
    assert (curve.low <= curve.mean).all()
    assert (curve.mean <= curve.high).all()
    assert (curve.low >= 0).all()
    assert curve.x[0] < spectra["hessian"].min()
    wide = density.curve(num_points=4000, confidence=0.99)
    assert (wide.high - wide.mean).sum() > 1.2 * (curve.high - curve.mean).sum()


def test_the_band_of_a_curve():
    """Two starts: +- t(1) |a - b| / 2 around their mean."""
    density = SpectralDensity(np.array([[0.0], [1.0]]), np.ones((2, 1)), 0, 2)
    curve = density.curve(num_points=2, width=1.0)
    first, second = (math.exp(-((x + 4) ** 2) / 2) / math.sqrt(2 * math.pi) for x in (0, 1))
    assert curve.high[0] - curve.mean[0] == pytest.approx(12.706204736 * abs(first - second) / 2)
    assert math.isnan(SpectralDensity(np.ones((1, 1)), np.ones((1, 1)), 0, 1).moment_error(1))
    assert density.moment_error(1) == pytest.approx(0.5)


def test_a_single_eigenvalue_has_a_curve():
    assert spectral_density(Diagonal([0.0] * 50)).curve().width == 0.01
    assert spectral_density(Diagonal([3.0] * 50)).curve().width == pytest.approx(0.03)


@pytest.mark.bit_for_bit
def test_progress_and_seed():
    told = []
    density = spectral_density(Diagonal(np.linspace(0, 1, 90)), steps=10, starts=2, progress=lambda *seen: told.append(seen))
    assert told == [(i, 20) for i in range(1, density.products + 1)]
    assert np.array_equal(density.nodes, spectral_density(Diagonal(np.linspace(0, 1, 90)), steps=10, starts=2).nodes)
    assert not np.array_equal(density.nodes, spectral_density(Diagonal(np.linspace(0, 1, 90)), steps=10, starts=2, seed=1).nodes)


def test_bad_arguments():
    operator = Diagonal(range(5))
    for name in ("steps", "starts"):
        with pytest.raises(UserError, match=f"{name} = 0: must be a finite number above zero"):
            spectral_density(operator, **{name: 0})
    with pytest.raises(UserError, match="width = -1: must be a finite number above zero"):
        spectral_density(operator).curve(width=-1)
    with pytest.raises(UserError, match="product 1 is not finite"):
        spectral_density(Diagonal([1.0, math.inf]))
