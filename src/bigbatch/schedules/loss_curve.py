"""Has a loss fallen, turned or risen? The curve of noisy losses over a warm-up, by Gaussian processes; AutoWU's test (autowu.py)."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.schedules.gaussian_process import Array, Posterior, Times, fit, places, rise

NUM_BLOCKS, NUM_PLACES = 32, 200
LIKELY = 0.8  # probability from which the loss is taken to have fallen, so that there is a minimum to go back to, or else to have risen
JITTER, MIN_LOSSES = 1e-4, 10
RISE = 10.0  # spreads of the first losses above them: where losses are cut that show only a rise
_erfc = np.frompyfunc(math.erfc, 1, 1)


class Curve(NamedTuple):
    """What is known of the losses' curve f, averaged over correlations and shares of noise; places from 0 to 1."""

    turned: float  # probability that it fell and then rose
    fell: float  # probability that it fell
    lowest: float  # x*, where its mean is lowest
    harmless: float  # the last place before it had likely risen from its start; 1 if it never had


def normal_cdf(z: Array) -> Array:
    """Phi of each element; scipy's is faster, but these are few.

    >>> normal_cdf(np.array([0.0, 1.6448536269514722])).round(12).tolist()
    [0.5, 0.95]
    """
    return np.asarray(_erfc(-z / math.sqrt(2)), float) / 2


def curve_of(posteriors: list[Posterior]) -> Curve:
    """The curve by a fit of losses."""
    at = places(NUM_PLACES)
    turned = fell = 0.0
    mean, risen = np.zeros(NUM_PLACES), np.zeros(NUM_PLACES)
    for posterior in posteriors:
        f = at @ posterior.axes @ posterior.weights
        lowest = np.argmin(f, axis=0)
        from_start = rise(posterior, at[:1], at, jitter=JITTER)
        to_end = rise(posterior, at[:-1], at[-1:], jitter=JITTER).max(0)
        drop = -from_start[lowest, np.arange(f.shape[1])]
        turned += float(normal_cdf(np.minimum(to_end, drop)) @ posterior.probability)
        fell += float(normal_cdf(drop) @ posterior.probability)
        mean += (f + posterior.mean) @ posterior.probability
        risen += normal_cdf(from_start) @ posterior.probability
    harmless = max(0, int(np.argmax(risen > LIKELY)) - 1) if (risen > LIKELY).any() else NUM_PLACES - 1
    return Curve(turned, fell, int(np.argmin(mean)) / (NUM_PLACES - 1), harmless / (NUM_PLACES - 1))


def scaled(losses: ArrayLike, *, spreads: float = 0.0) -> Array:
    """Losses cut at the highest of the first 10, or so many of their spreads above it, divided by the root mean square of all.

    A spread is from the lowest to the highest of the first 10, or a hundredth of the highest if that is more.

    >>> set(scaled([3.0] * 10 + [1e9]).tolist())
    {1.0}
    """
    y = np.asarray(losses, float)
    first = y[:MIN_LOSSES]
    y = np.minimum(y, first.max() + spreads * max(np.ptp(first), 0.01 * abs(first.max())))
    return np.asarray(y / max(float(np.sqrt(np.mean(y * y))), 1e-300))


def blocks(x: Array, y: Array) -> tuple[Array, Array, Times]:
    """Means of x and y over at most 32 equal parts of [0, 1], and the numbers of the parts, without empty ones.

    >>> where, what, parts = blocks(np.linspace(0, 1, 66), np.arange(66.0))
    >>> what[:2].tolist(), parts[:3].tolist(), len(parts)
    ([1.0, 4.0], [0, 1, 2], 22)
    """
    num = -(-len(x) // -(-len(x) // NUM_BLOCKS))
    part = np.minimum((x * num).astype(np.int64), num - 1)
    counts = np.bincount(part, minlength=num)
    some = np.flatnonzero(counts)
    return *(np.bincount(part, values, num)[some] / counts[some] for values in (x, y)), some  # type: ignore[return-value]


def judge(x: ArrayLike, losses: ArrayLike, *, rises: bool = True) -> Curve:
    """One test.

    Args:
        x: Places of the losses, from 0 to 1, shape (n,).
        losses: All finite, in their order, shape (n,).
        rises: Whether to look for a rise, too, where the loss did not fall; only the end of a warm-up needs it.

    Returns:
        The curve.
    """
    x, y = np.asarray(x, float), np.asarray(losses, float)
    curve = curve_of(fit(*blocks(x, scaled(y))))
    if not rises or curve.fell > LIKELY or y.max() <= y[:MIN_LOSSES].max():
        return curve
    return curve._replace(harmless=curve_of(fit(*blocks(x, scaled(y, spreads=RISE)))).harmless)
