r"""Three regimes of batches: perfect scaling, diminishing returns, no fewer updates however large; and how the best settings move.

Paper:   Shallue et al. 2018, Measuring the Effects of Data Parallelism on Neural Network Training, arXiv:1811.03600, Section 4.
Formula: log2 S = c - (x - x_1)    for x = log2 B <= x_1      perfect scaling: twice the batch, half the updates
         log2 S = c - (x - x_1)/2  for x_1 <= x <= x_2         diminishing returns
         log2 S = c - (x_2 - x_1)/2  for x >= x_2              maximal data parallelism
         with c, x_1 <= x_2 by least squares; best settings: log lr = a + b log B, of which linear scaling has b = 1 and the root rule 1/2
         Intervals: percentiles over draws of as many trials at each batch, with replacement, each draw with its own best trials.
Differs: the paper reads the regimes from plots. Slope 1/2 in between is ours: the measured one goes from 1 to 0 smoothly.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Steps to a target over all batches",
    title="Measuring the Effects of Data Parallelism on Neural Network Training",
    authors="Shallue et al.",
    year=2018,
    arxiv="1811.03600",
    where="Section 4",
    study="studies/steps",
)
DRAWS = 400
LEAST_BATCHES = 4
CONFIDENCE = 0.95
RESOLUTION = 0.125  # octaves between the knees that are tried


class Interval(NamedTuple):
    """A value, and where other draws of as many trials would have it; None where it has no bound."""

    value: float
    lower: float | None
    upper: float | None


class Fit(NamedTuple):
    """The curve through one point a batch; its knees lie at the ends of what was measured where a regime was not seen."""

    perfect_until: float  # samples
    maximal_from: float  # samples
    level: float  # updates at `perfect_until`
    scatter: float  # standard deviation of log S around the curve


class Regimes(NamedTuple):
    """The fit with its intervals."""

    perfect_until: Interval
    maximal_from: Interval
    level: float  # updates at `perfect_until`
    scatter: float  # standard deviation of log S around the fit

    def updates(self, batch: float) -> float:
        """S at a batch, by the fit."""
        x, low, high = (math.log2(v) for v in (batch, self.perfect_until.value, self.maximal_from.value))
        return float(self.level * 2 ** _shape(x - low, high - low))


def fewest_updates(updates: Sequence[float], seed: int = 0) -> Interval | None:
    """The fewest updates of several trials, and its interval over draws of as many; None where none reached the target.

    Args:
        updates: Of each trial that did not diverge, to the target; infinite where it was not reached.
        seed: Of the draws.

    >>> fewest_updates([120, 100, math.inf, 110] * 3)
    Interval(value=100, lower=100, upper=110)
    """
    if not updates or (best := min(updates)) == math.inf:
        return None
    chance = random.Random(seed)
    return _interval(best, sorted(min(chance.choices(updates, k=len(updates))) for _ in range(DRAWS)))


def fit_regimes(updates: Mapping[int, Sequence[float]], seed: int = 0) -> Regimes | None:
    """Fit the regimes to the best trials of four batches or more; None where fewer reached the target.

    Args:
        updates: At each batch, as in `fewest_updates`.
        seed: Of the draws.
    """
    best = _best(updates)
    if len(best) < LEAST_BATCHES:
        return None
    fit = _fit({batch: updates[batch][i] for batch, i in best.items()})
    drawn = [_fit({batch: updates[batch][i] for batch, i in draw.items()}) for draw in _draws(updates, seed) if len(draw) >= LEAST_BATCHES]
    perfect = _interval(fit.perfect_until, sorted(each.perfect_until for each in drawn))
    return Regimes(perfect, _interval(fit.maximal_from, sorted(each.maximal_from for each in drawn)), fit.level, fit.scatter)


def power_of_batch(updates: Mapping[int, Sequence[float]], values: Mapping[int, Sequence[float]], seed: int = 0) -> Interval | None:
    """The power of the batch with which a positive value of the best trials grows, such as the rate; None with fewer than three batches.

    Args:
        updates: At each batch, as in `fewest_updates`.
        values: Of the same trials.
        seed: Of the draws.
    """
    best = _best(updates)
    if len(best) < 3:
        return None
    drawn = [draw for draw in _draws(updates, seed) if len(draw) >= 3]
    slopes = sorted(_slope({batch: values[batch][i] for batch, i in draw.items()}) for draw in drawn)
    return _interval(_slope({batch: values[batch][i] for batch, i in best.items()}), slopes)


def _best(updates: Mapping[int, Sequence[float]]) -> dict[int, int]:
    """Number of the best trial of each batch that reached the target."""
    found = {batch: min(range(len(each)), key=each.__getitem__) for batch, each in updates.items() if each}
    return {batch: i for batch, i in found.items() if updates[batch][i] < math.inf}


def _draws(updates: Mapping[int, Sequence[float]], seed: int) -> list[dict[int, int]]:
    """As `_best`, of each draw."""
    chance, draws = random.Random(seed), []
    for _ in range(DRAWS):
        found = {batch: min(chance.choices(range(len(each)), k=len(each)), key=each.__getitem__) for batch, each in updates.items() if each}
        draws.append({batch: i for batch, i in found.items() if updates[batch][i] < math.inf})
    return draws


def _interval(value: float, drawn: Sequence[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    ends = (drawn[round(tail * (len(drawn) - 1))], drawn[round((1 - tail) * (len(drawn) - 1))])
    lower, upper = (end if math.isfinite(end) else None for end in ends)
    return Interval(value, lower, upper)


def _slope(values: Mapping[int, float]) -> float:
    x, y = np.log(list(values)), np.log(list(values.values()))
    return float(np.polyfit(x, y, 1)[0])


def _shape(beyond: Any, between: Any) -> Any:
    """log2 S, less its value at the first knee: `beyond` it, with the second knee `between` further on; numbers or arrays, in octaves."""
    return -np.minimum(beyond, 0) - np.clip(beyond, 0, between) / 2


def _fit(steps: Mapping[int, float]) -> Fit:
    x, y = np.log2(list(steps)), np.log2(list(steps.values()))
    places = np.arange(x.min(), x.max() + RESOLUTION / 2, RESOLUTION)
    low, high = (grid[np.triu_indices(len(places))] for grid in np.meshgrid(places, places, indexing="ij"))
    shapes = _shape(x[:, None] - low, high - low)
    levels = (y[:, None] - shapes).mean(0)
    misfits = np.square(y[:, None] - shapes - levels).sum(0)
    best = int(misfits.argmin())
    scatter = math.sqrt(misfits[best] / max(len(x) - 3, 1)) * math.log(2)
    return Fit(float(2 ** low[best]), float(2 ** high[best]), float(2 ** levels[best]), scatter)
