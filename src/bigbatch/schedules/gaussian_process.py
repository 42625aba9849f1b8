r"""A Gaussian process on [0, 1] under autocorrelated noise, exactly and fast: what AutoWU smooths losses with.

Formula: y_t = m + f(x_t) + e_t,   cov(f(x), f(x')) = a exp(-(x - x')^2 / (2 l^2)),   l = 0.2,   cov(e_s, e_t) = r a c^|s - t|.
         Features: with z = (x - 1/2) / l, exp(-(z - z')^2 / 2) = exp(-z^2 / 2) exp(-z'^2 / 2) sum_k (z z')^k / k!, and |z| <= 2.5:
         32 terms are enough for rounding, and their first 16 principal axes over [0, 1] for 1e-9. So f(x) = Phi(x) w with 16 features
         and w ~ N(0, a).
         Whitening: with c_t = c^(gap to the loss before), (y_t - c_t y_(t-1)) / sqrt(1 - c_t^2) has white noise, and so for Phi and 1.
         Everything is then linear regression in 16 weights: n losses cost O(n), where a general implementation takes O(n^3).
         Average: m and a maximise the likelihood at each c and r; c and r are averaged over, by that likelihood on the grid of
         CORRELATIONS and NOISE_RATIOS. One best c and r would be too sure: a few losses tell a wave of autocorrelated noise from a curve
         by little.
Differs: from scikit-learn's GaussianProcessRegressor in the mean, the autocorrelation and the average (tests compare one c and r).
Units:   variances are squares of the losses' unit; c is of neighbours in time, whatever their places.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LENGTH_SCALE = 0.2
NUM_TERMS, NUM_FEATURES = 32, 16
CORRELATIONS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.96, 0.99)
NOISE_RATIOS = np.geomspace(1e-6, 1e2, 17)
NEGLIGIBLE = 0.05  # of the likeliest pair: less likely pairs of c and r are left out

Array = NDArray[np.float64]
Times = NDArray[np.int64]


def features(x: ArrayLike) -> Array:
    """Phi(x), shape (n, 16), for x in [0, 1]: Phi(x) Phi(x') = exp(-(x - x')^2 / (2 l^2)) to 1e-9.

    >>> a, b = features([0.1, 0.9])
    >>> round(float(a @ b), 8) == round(float(np.exp(-0.5 * (0.8 / 0.2) ** 2)), 8)
    True
    """
    return np.asarray(_terms(x) @ _principal_axes(), np.float64)


def _terms(x: ArrayLike) -> Array:
    """Of the series of exp(z z'), shape (n, 16)."""
    z = (np.asarray(x, float)[:, None] - 0.5) / LENGTH_SCALE
    terms = np.concatenate([np.exp(-0.5 * z * z), z / np.sqrt(np.arange(1.0, NUM_TERMS))], axis=1)
    return np.cumprod(terms, axis=1)


@cache
def _principal_axes() -> Array:
    """Of the terms over [0, 1], shape (32, 16)."""
    axes = np.linalg.svd(_terms(np.linspace(0, 1, 501)), full_matrices=False)[2]
    return np.asarray(axes[:NUM_FEATURES].T, np.float64)


@cache
def places(num: int) -> Array:
    """Features of `num` places from 0 to 1, shape (num, 16)."""
    return features(np.linspace(0, 1, num))


class Posterior(NamedTuple):
    """Of f(x) = Phi(x) w, given losses, at one correlation c and k ratios r; in the axes in which the weights are independent."""

    correlation: float  # c
    probability: Array  # of each ratio, (k,); all pairs of c and r that `fit` returns sum to 1
    axes: Array  # Phi(x) axes are the features in these axes, (16, 16)
    weights: Array  # mean of each weight, (16, k)
    variances: Array  # of each weight, (16, k)
    mean: Array  # m, (k,)
    scale: Array  # a, (k,)
    noise: Array  # r a, variance of a loss around f, (k,)


def whiten(values: Array, times: Times, correlation: float) -> tuple[Array, float]:
    """Columns of which AR(1) noise becomes white with its variance unchanged, and the log determinant of the noise's correlation matrix.

    Args:
        values: Rows in order of time, shape (n, columns).
        times: Whole and rising, shape (n,); rows may be left out between them.
        correlation: c, of neighbours in time, in [0, 1).

    >>> whiten(np.array([[1.0], [2.0]]), np.array([0, 1]), 0.6)[0].ravel().round(12).tolist()  # (2 - 0.6 * 1) / 0.8
    [1.0, 1.75]
    """
    c = correlation ** np.diff(times)
    width = np.sqrt(1 - c * c)
    rest = (values[1:] - c[:, None] * values[:-1]) / width[:, None]
    return np.concatenate([values[:1], rest]), 2 * float(np.log(width).sum())


def fit(x: Array, y: Array, times: Times) -> list[Posterior]:
    """The process, given losses, for every correlation and ratio that is not negligible.

    Args:
        x: Places in [0, 1], shape (n,).
        y: Losses, shape (n,).
        times: Of the losses, whole and rising, shape (n,): the clock of the noise.
    """
    n, r = len(y), NOISE_RATIOS[:, None]
    columns = np.column_stack([features(x), np.ones(n), y])
    costs, found = [], []
    for correlation in CORRELATIONS:
        white, log_det = whiten(columns, times, correlation)
        gram = white.T @ white
        eigenvalues, axes = np.linalg.eigh(gram[:NUM_FEATURES, :NUM_FEATURES])
        shrunk = np.maximum(eigenvalues, 0.0) + r
        of_one, of_y = (axes.T @ gram[:NUM_FEATURES, NUM_FEATURES + i] for i in range(2))
        (ones, cross), (_, squares) = gram[NUM_FEATURES:, NUM_FEATURES:]
        # products u (Phi Phi' + r)^-1 v, for each r
        ones = (ones - (of_one * of_one / shrunk).sum(1)) / r[:, 0]
        cross = (cross - (of_one * of_y / shrunk).sum(1)) / r[:, 0]
        squares = (squares - (of_y * of_y / shrunk).sum(1)) / r[:, 0]
        mean = cross / ones
        scale = np.maximum(squares - mean * cross, max(1e-12 * float(y @ y), 1e-300)) / n
        costs.append(n * np.log(scale * r[:, 0]) + np.log(shrunk / r).sum(1) + log_det)  # -2 log likelihood but for a constant
        found.append((axes, ((of_y - mean[:, None] * of_one) / shrunk).T, (scale[:, None] * r / shrunk).T, mean, scale))
    probability = np.exp(-0.5 * (np.asarray(costs) - np.min(costs)))
    probability[probability < NEGLIGIBLE] = 0.0
    probability /= probability.sum()
    return [
        Posterior(correlation, p[p > 0], axes, w[:, p > 0], v[:, p > 0], m[p > 0], a[p > 0], (a * NOISE_RATIOS)[p > 0])
        for correlation, p, (axes, w, v, m, a) in zip(CORRELATIONS, probability, found, strict=True)
        if p.any()
    ]


def rise(posterior: Posterior, low: Array, high: Array, *, jitter: float) -> Array:
    """Rise f(x') - f(x) over its standard deviation, from the joint Gaussian of both: z, where P(f(x) < f(x')) = Phi(z).

    Args:
        posterior: Of the process.
        low: Features of places x, shape (n, 16), or of one, (1, 16).
        high: Features of places x', likewise.
        jitter: Added to the variance of each rise.

    Returns:
        Values z, shape (n, k), for each ratio of the posterior.
    """
    apart = (high - low) @ posterior.axes
    return np.asarray(apart @ posterior.weights / np.sqrt((apart * apart) @ posterior.variances + jitter))
