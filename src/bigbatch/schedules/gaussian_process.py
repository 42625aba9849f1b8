r"""A Gaussian process on [0, 1] with a squared exponential of length 0.2, exactly and fast: what AutoWU smooths losses with.

Formula: y = m + f(x) + noise,   cov(f(x), f(x')) = a exp(-(x - x')^2 / (2 l^2)),   l = 0.2.
         With z = (x - 1/2) / l, exp(-(z - z')^2 / 2) = exp(-z^2 / 2) exp(-z'^2 / 2) sum_k (z z')^k / k!, and |z| <= 2.5: 32 terms are
         enough for rounding. So f(x) = Phi(x) w with 32 features and w ~ N(0, a), and everything is linear regression in 32 weights:
         n losses cost O(n), where a general implementation takes O(n^3), and many times that to fit m, a and the noise.
Differs: from scikit-learn's GaussianProcessRegressor in nothing but speed and in that the mean is fitted too (tests compare them).
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LENGTH_SCALE = 0.2
NUM_FEATURES = 32

Array = NDArray[np.float64]


def features(x: ArrayLike) -> Array:
    """Phi(x), shape (n, 32), for x in [0, 1]: Phi(x) Phi(x') = exp(-(x - x')^2 / (2 l^2)) to 1e-12, by the series of exp(z z').

    >>> a, b = features([0.1, 0.9])
    >>> round(float(a @ b), 12) == round(math.exp(-0.5 * (0.8 / 0.2) ** 2), 12)
    True
    """
    z = (np.asarray(x, float)[:, None] - 0.5) / LENGTH_SCALE
    terms = np.concatenate([np.exp(-0.5 * z * z), z / np.sqrt(np.arange(1.0, NUM_FEATURES))], axis=1)
    return np.cumprod(terms, axis=1)


@cache
def places(num: int) -> Array:
    """Features of `num` places from 0 to 1, shape (num, 32)."""
    return features(np.linspace(0, 1, num))


class Hyper(NamedTuple):
    """What is fitted; variances are squares of the losses' unit."""

    mean: float  # m
    scale: float  # a, variance of f
    noise: float  # variance of a loss around f


class Posterior(NamedTuple):
    """Of f(x) = Phi(x) w, given losses."""

    weights: Array  # mean of w, (32,)
    covariance: Array  # of w, (32, 32)


def fit(x: Array, y: Array) -> Hyper:
    """Mean, scale and noise of the greatest likelihood.

    For a given ratio r = noise / scale the best mean and scale are known in closed form, which leaves one number to search: r, from
    1e-6 to 1e4, on a grid and then on a finer one around the best.

    Args:
        x: Places in [0, 1], shape (n,).
        y: Losses, shape (n,).
    """
    n, phi = len(y), features(x)
    eigenvalues, vectors = np.linalg.eigh(phi.T @ phi)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    turned = phi @ vectors

    def inner(u: Array, v: Array, r: Array) -> Array:
        """Product u (Phi Phi' + r)^-1 v, for each r."""
        return np.asarray((u @ v - ((u @ turned) * (v @ turned) / (r[:, None] + eigenvalues)).sum(1)) / r)

    def profile(r: Array) -> tuple[Array, Array, Array]:
        """-2 log likelihood but for a constant, mean and scale, for each r."""
        one = np.ones(n)
        mean = inner(one, y, r) / inner(one, one, r)
        scale = np.maximum(inner(y, y, r) - mean * inner(one, y, r), max(1e-12 * float(y @ y), 1e-300)) / n
        return n * np.log(scale * r) + np.log1p(eigenvalues / r[:, None]).sum(1), mean, scale

    coarse = np.geomspace(1e-6, 1e4, 81)
    fine = coarse[np.argmin(profile(coarse)[0])] * np.geomspace(10**-0.125, 10**0.125, 81)
    cost, mean, scale = profile(fine)
    best = int(np.argmin(cost))
    return Hyper(float(mean[best]), float(scale[best]), float(scale[best] * fine[best]))


def condition(x: Array, y: Array, hyper: Hyper) -> Posterior:
    """The process, given losses `y` at places `x`, both of shape (n,)."""
    phi = features(x)
    precision = phi.T @ phi / hyper.noise + np.eye(NUM_FEATURES) / hyper.scale
    covariance = np.asarray(np.linalg.inv(precision), np.float64)
    return Posterior(covariance @ (phi.T @ (y - hyper.mean)) / hyper.noise, covariance)


def rise(posterior: Posterior, low: Array, high: Array, *, jitter: float) -> Array:
    """Rise f(x') - f(x) over its standard deviation, from the joint Gaussian of both: z, where P(f(x) < f(x')) = Phi(z).

    Args:
        posterior: Of the process.
        low: Features of places x, shape (n, 32).
        high: Features of places x', likewise, or of one, (32,).
        jitter: Added to the variance of each rise.

    Returns:
        Values z, shape (n,).
    """
    apart = high - low
    variance = ((apart @ posterior.covariance) * apart).sum(1) + jitter
    return np.asarray(apart @ posterior.weights / np.sqrt(variance))


def p_of(z: float) -> float:
    """Phi(z), the normal distribution.

    >>> round(p_of(1.6449), 4)
    0.95
    """
    return 0.5 * math.erfc(-z / math.sqrt(2))
