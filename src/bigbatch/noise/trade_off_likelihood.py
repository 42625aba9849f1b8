"""The likelihood of updates to a target by batch, and its maxima: what `critical_batch` is fitted by."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigbatch.core.extras import needed

WHAT = "a fit of the critical batch"
REACH = math.log(1000)
LEAST_SCATTER = 1e-6  # of log S: keeps the likelihood of points without noise finite, and smooth
Array = NDArray[np.float64]


class Fit(NamedTuple):
    """The data in logarithms, and the likelihood's maximum. Letters: p = log S_min, b = log B_crit, q = p + b = log E_min."""

    batches: Array  # log B_i
    steps: Array  # log S_i
    reached: NDArray[np.bool_]
    range: tuple[float, float]  # of b
    p: float = 0.0
    b: float = 0.0
    sigma: float = 0.0
    limit: float = 0.0  # of the negative log-likelihood, for values inside an interval


def misfit(f: Fit, p: Array, q: Array) -> tuple[Array, Array]:
    """Least negative log-likelihood over sigma, and that sigma, for arrays of (p, q).

    With u = 1/sigma it is -n log u + u^2 R/2 - sum log Phi(u c), convex in u: Newton's method, from the optimum without stopped runs.
    """
    with needed(WHAT, extra="study"):
        from scipy import special
    excess = f.steps - np.logaddexp(p[..., None], q[..., None] - f.batches)
    c = -excess[..., ~f.reached]  # how far beyond the stop the fit lies
    n = excess[..., f.reached].shape[-1]
    R = np.square(excess[..., f.reached]).sum(-1) + n * LEAST_SCATTER**2
    u = np.sqrt(n / R)
    for _ in range(100 if c.shape[-1] else 0):
        x = np.maximum(u[..., None] * c, -1e4)  # lower ones only on the way: at the optimum x^2 is at most n
        hazard = np.exp(-np.square(x) / 2 - special.log_ndtr(x)) / math.sqrt(2 * math.pi)
        slope = -n / u + R * u - (c * hazard).sum(-1)
        curvature = n / u**2 + R + (c**2 * hazard * np.maximum(hazard + x, 0)).sum(-1)
        before, u = u, np.clip(u - slope / curvature, u / 4, 4 * u)
        if np.all(np.abs(u - before) <= 1e-10 * u):
            break
    return -n * np.log(u) + u**2 * R / 2 - special.log_ndtr(u[..., None] * c).sum(-1), 1 / u


def best_at(f: Fit, b: float) -> tuple[float, float]:
    """The best p where B_crit is given, the mean of those of the runs or more where some were stopped, and its misfit."""
    own = f.steps - np.logaddexp(0, b - f.batches)
    p = float(own[f.reached].mean())
    if f.reached.all():
        return p, float(misfit(f, np.array(p), np.array(p + b))[0])
    return least(lambda ps: misfit(f, ps, ps + b)[0], (p, float(own.max()) + REACH))


def over_batches(f: Fit, path: Callable[[Array], tuple[Array, Array]]) -> float:
    """Least negative log-likelihood over B_crit, p and q being functions of it."""
    return least(lambda b: misfit(f, *path(b))[0], (f.range[0] - REACH, f.range[1] + REACH))[1]


def through(f: Fit, log_batch: float, v: float) -> float:
    """Least negative log-likelihood of the curves with log S = v at a batch."""
    return over_batches(f, lambda b: (p := v - np.logaddexp(0, b - log_batch), p + b))


def least(cost: Callable[[Array], Array], span: tuple[float, float]) -> tuple[float, float]:
    """Where a function of one number is least, and its value there: a scan, then Brent's method around the best."""
    with needed(WHAT, extra="study"):
        from scipy import optimize
    best = int(np.argmin(cost(grid := np.linspace(*span, 40))))
    around = grid[max(best - 1, 0)], grid[min(best + 1, 39)]
    found = optimize.minimize_scalar(lambda x: float(np.squeeze(cost(np.array(x)))), bounds=around, options={"xatol": 1e-9})
    return float(found.x), float(found.fun)
