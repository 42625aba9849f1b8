r"""Local critical batch: from branches of one run at several batches, how large a batch is worth it at this point of training.

Paper:   Merrill et al. 2025, Critical Batch Size Revisited: A Simple Empirical Approach to Large-Batch Language Model Training,
         arXiv:2505.23971: from a checkpoint, branches at k times the batch see the same samples; the largest k whose loss is not worse.
Formula: a branch of N samples at a batch of k B lowers the held-out loss L_0 of the checkpoint by
             g(k, N) = A (N / (1 + k B / B_crit))^a
         for E = E_min (1 + B/B_crit) samples are worth E_min of them (McCandlish et al. 2018), and a says how the gain grows with samples:
         a branch of k = 1 over N / 2 tells it. A, a (from 1/4 to 1) and B_crit by least squares over the means of the windows, with
         a = 0.6 +- 0.2 as a prior, which the data outweigh unless they say little of it.
         Interval: where B_crit is b, the contrast c of the branches along d g/d log b, less its parts along d g/d A and d g/d a, has a mean
         of zero over windows of data: all b with |t| <= t_{confidence, windows - 1}. Branches of one window see the same samples, so their
         gains go together; the test needs no more than windows that are independent.
         Held: for k upwards, until one fails, mean(L_k - L_1) + t se <= tolerance, in pairs by window, one-sided.
Units:   samples in B, N and B_crit; losses in the task's own.
Differs: the paper smooths losses and takes 0.01 as tolerance without a test; the test, the fit and the interval are ours. Tests in a fixed
         order, each only if the one before held, together err as rarely as one.
Limits:  gains below zero, and branches that diverged, count as no gain. Local: the critical batch grows in training. It is of the rates
         that the branches had: near the best of each batch, or they say too little of large ones. The interval has the scatter of windows
         in it and not what the formula misses: a quarter where the largest batch makes two updates, and more where branches are so long
         that the gain has flattened (a at its lower bound): benchmarks/branch_coverage.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigbatch.core.checks import UserError, check_fraction, check_positive
from bigbatch.core.paper import Paper
from bigbatch.core.student import student_quantile
from bigbatch.noise.critical_batch import Estimate

PAPER = Paper(
    method="Critical batch by branches",
    title="Critical Batch Size Revisited: A Simple Empirical Approach to Large-Batch Language Model Training",
    authors="Merrill et al.",
    year=2025,
    arxiv="2505.23971",
    where="branched training",
    study="studies/critical_batch",
)
Array = NDArray[np.float64]
LEAST_POWER, MOST_POWER = 0.25, 1.0
POWERS = np.linspace(LEAST_POWER, MOST_POWER, 76)
USUAL_POWER, POWER_SPREAD = 0.6, 0.2
LEAST_SPREAD = 0.05
"""Of gains, where one window tells none: its part of the largest."""
REACH, STEP = math.log(64), 0.02
"""Of log B_crit: how far beyond the batches it is looked for, and how finely."""


class NothingToCompare(UserError):
    """All branches diverged, or none is better than the checkpoint."""


class Branches(NamedTuple):
    """The branches of one batch and length, one for each window of data, in the same order for all."""

    global_batch: float  # k B, samples
    samples: float  # N
    losses: tuple[float, ...]  # held out, at the end; NaN of a branch that diverged


class LocalCriticalBatch(NamedTuple):
    """What branches say at one checkpoint."""

    critical_batch: Estimate  # samples; bounds of 0 or infinity where the branches set none, NaN with one window
    power: float  # a: how the gain grows with samples
    gain: float  # of the fit: what all the samples lower the loss by, at a batch of zero


def effective_samples(samples: float, global_batch: float, critical_batch: float) -> float:
    """What samples are worth at a batch, in samples of the smallest: N / (1 + B/B_crit).

    >>> effective_samples(1000, 512, 512)
    500.0
    """
    return samples / (1 + global_batch / critical_batch)


def local_critical_batch(start_loss: float, branches: Sequence[Branches], *, confidence: float = 0.95) -> LocalCriticalBatch:
    """Fit the critical batch to branches from one checkpoint.

    Args:
        start_loss: Held-out loss of the checkpoint.
        branches: Of three batches or lengths at least; of two lengths, or the power is taken from the curve over batches alone.
        confidence: Of the interval.

    Raises:
        UserError: If there are too few branches or unequal numbers of windows, all diverged, or none lowers the loss.

    >>> of = lambda batch, samples: 2.0 - 0.1 * (samples / 1000 / (1 + batch / 512)) ** 0.5
    >>> branches = [Branches(b, n, (of(b, n),) * 2) for b, n in ((64, 500), (64, 1000), (256, 1000), (1024, 1000))]
    >>> round(local_critical_batch(2.0, branches).critical_batch.value, -1)
    510.0
    """
    check_fraction("confidence", confidence)
    batches, samples, gains = _gains(start_loss, branches)
    grid = np.arange(math.log(batches.min()) - REACH, math.log(batches.max()) + REACH, STEP)
    mean = gains.mean(axis=0)
    costs, windows = _costs(grid, batches, samples, mean), len(gains)
    powers = POWERS[costs.argmin(axis=1)]
    variance = float(gains.var(axis=0, ddof=1).mean()) / windows if windows > 1 else (LEAST_SPREAD * float(mean.max())) ** 2
    prior = np.square((POWERS - USUAL_POWER) / POWER_SPREAD)
    best, chosen = divmod(int((costs + max(variance, 1e-12 * float(mean.max()) ** 2) * prior).argmin()), len(POWERS))
    power = float(POWERS[chosen])
    model, _, _ = _model(grid[best], power, batches, samples, mean)
    gain = float(model.max() * (1 + batches[model.argmax()] / math.exp(grid[best])) ** power)
    lower, upper = math.nan, math.nan
    if windows > 1:
        t = student_quantile(0.5 + confidence / 2, windows - 1)
        inside = [i for i in range(len(grid)) if abs(_t_value(grid[i], powers[i], batches, samples, gains)) <= t]
        inside.append(best)
        lower = 0.0 if min(inside) == 0 else math.exp(grid[min(inside)])
        upper = math.inf if max(inside) == len(grid) - 1 else math.exp(grid[max(inside)])
    at_end = best in (0, len(grid) - 1)
    value = (0.0 if best == 0 else math.inf) if at_end else math.exp(grid[best])
    return LocalCriticalBatch(Estimate(value, lower, upper), power, gain)


def largest_held(branches: Sequence[Branches], *, tolerance: float, confidence: float = 0.95) -> float | None:
    """The largest batch that is not worse than the smallest by more than a tolerance, as a test says it.

    Args:
        branches: All of one length, in any order.
        tolerance: In the loss's unit, > 0.
        confidence: One minus the chance that a batch which is worse is called held.

    Returns:
        Samples; the smallest batch itself where no larger one holds; None with fewer than two windows.

    >>> losses = {64: (2.00, 2.02), 128: (2.001, 2.021), 256: (2.1, 2.2)}
    >>> largest_held([Branches(batch, 1000, ends) for batch, ends in losses.items()], tolerance=0.01)
    128
    """
    check_positive("tolerance", tolerance)
    first, *larger = sorted(branches, key=lambda each: each.global_batch)
    if len(first.losses) < 2:
        return None
    held = first.global_batch
    for each in larger:
        if excess(each, first, confidence=confidence)[1] > tolerance:
            break
        held = each.global_batch
    return held


def excess(branches: Branches, first: Branches, *, confidence: float = 0.95) -> tuple[float, float]:
    """By how much the loss is worse than another batch's, in the mean over windows, and the upper bound of that; infinite if one diverged.

    >>> value, bound = excess(Branches(128, 1000, (2.03, 2.05)), Branches(64, 1000, (2.00, 2.02)))
    >>> round(value, 6), round(bound, 6)
    (0.03, 0.03)
    """
    differences = np.array(branches.losses) - np.array(first.losses)
    if not np.isfinite(differences).all():
        return math.inf, math.inf
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, math.nan
    return mean, mean + student_quantile(confidence, n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)


def expected_factor(gain: float, spread: float, batches: Sequence[float], *, windows: int, confidence: float = 0.95) -> float:
    """About by which factor to each side the interval will reach, if the critical batch lies amid the batches.

    Args:
        gain: Of the smallest batch over the whole length.
        spread: Standard deviation of that gain over windows; that of the others is taken to be the same, and independent.
        batches: That are to be compared, samples; the smallest over half the length too.
        windows: Of data.
        confidence: Of the interval.

    >>> round(expected_factor(0.03, 0.002, [64, 256, 1024], windows=3), 1)
    4.1
    """
    check_positive("windows", windows)
    if gain <= 0 or windows < 2:
        return math.inf
    sizes = np.array([min(batches), *sorted(batches)], dtype=float)
    samples = np.array([0.5, *[1.0] * len(batches)])
    middle = math.log(math.sqrt(sizes.min() * sizes.max()))
    shape = (samples / (1 + sizes / math.exp(middle))) ** USUAL_POWER
    *_, contrast = _model(middle, USUAL_POWER, sizes, samples, gain / shape[1] * shape)
    error = spread / (math.sqrt(windows) * float(np.linalg.norm(contrast)))
    exponent = student_quantile(0.5 + confidence / 2, windows - 1) * error
    return math.exp(exponent) if exponent < REACH else math.inf


def _gains(start_loss: float, branches: Sequence[Branches]) -> tuple[Array, Array, Array]:
    """Batches and lengths, shape (points,), and gains, shape (windows, points)."""
    for each in branches:
        check_positive("global_batch", each.global_batch)
        check_positive("samples", each.samples)
    if len({each.global_batch for each in branches}) < 2 or len(branches) < 3:
        raise UserError(f"{len(branches)} points of branches: three at least, of two batches or more; add multiples")
    if len({len(each.losses) for each in branches}) != 1 or not branches[0].losses:
        raise UserError("branches: each point needs a loss for each window of data; run the missing ones")
    losses = np.array([each.losses for each in branches], dtype=float).T
    if not np.isfinite(losses).any():
        raise NothingToCompare("all branches diverged: their rates are too high; lower lr_factors, or take lr = 'none'")
    gains = np.maximum(np.nan_to_num(start_loss - losses, nan=0.0, neginf=0.0), 0.0)
    if not gains.mean(axis=0).max() > 0:
        raise NothingToCompare(
            f"no branch is better than the checkpoint, whose held-out loss is {start_loss:.4g}: there is no gain to compare; take more "
            "samples, or a checkpoint before the held-out loss stops falling"
        )
    batches, samples = np.array([(float(each.global_batch), float(each.samples)) for each in branches]).T
    return batches, samples / samples.max(), gains


def _costs(grid: Array, batches: Array, samples: Array, mean: Array) -> Array:
    """The least squared misfit at each log B_crit and each of `POWERS`."""
    logs = np.log(effective_samples(samples, batches, np.exp(grid)[:, None]))  # type: ignore[arg-type]
    shapes = np.exp(POWERS[:, None] * logs[:, None, :])  # (grid, powers, points)
    fitted = (shapes @ mean) / np.square(shapes).sum(-1)
    costs: Array = np.square(mean - fitted[..., None] * shapes).sum(-1)
    return costs


def _model(b: float, power: float, batches: Array, samples: Array, mean: Array) -> tuple[Array, Array, Array]:
    """The fit at a log B_crit, its derivatives by A and the power, shape (points, 1 or 2), and the contrast along log B_crit."""
    logs = np.log(effective_samples(samples, batches, math.exp(b)))  # type: ignore[arg-type]
    shape = np.exp(power * logs)
    fitted = shape * (shape @ mean) / (shape @ shape)
    nuisance = np.stack([fitted, fitted * logs], axis=1)
    if power in (LEAST_POWER, MOST_POWER):
        nuisance = nuisance[:, :1]
    along = fitted * power * batches / (batches + math.exp(b))
    return fitted, nuisance, along - nuisance @ np.linalg.lstsq(nuisance, along, rcond=None)[0]


def _t_value(b: float, power: float, batches: Array, samples: Array, gains: Array) -> float:
    """Student's t of the contrast over windows."""
    fitted, _, contrast = _model(b, power, batches, samples, gains.mean(axis=0))
    values = (gains - fitted) @ contrast
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    if error <= 1e-12 * float(np.abs(gains).max() * np.linalg.norm(contrast)):  # equal windows
        return 0.0 if abs(mean) <= 1e-9 * float(np.abs(gains).max() * np.linalg.norm(contrast)) else math.copysign(math.inf, mean)
    return mean / error
