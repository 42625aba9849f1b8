r"""Critical batch: from runs at several batches to one target, where twice the batch stops saving half the updates.

Paper:   McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162, Section 2.3.
Formula: (S/S_min - 1) (E/E_min - 1) = 1,   E = B S,   B_crit = E_min / S_min,   which is
             S = S_min (1 + B_crit/B) = S_min + E_min/B          [updates]
             E = E_min (1 + B/B_crit) = E_min + B S_min          [samples]
         fit: log S_i = log(S_min + E_min/B_i) + Normal(0, sigma), by maximum likelihood; a run that was stopped after S_i updates before
         it reached the target adds the probability of having needed more.
         Intervals: profile likelihood. With l the log-likelihood, n runs that reached and t the Student quantile at n - 2 degrees,
             2 (l_max - l_profile) <= n log(1 + t^2 / (n - 2))
         which for a linear model without stopped runs is the t interval itself, and tends to the usual chi-square bound.
Units:   updates in S, samples in E and B; sigma is the scatter of log S, 0.1 being about 10 %.
         A rate that is off at one batch shifts all its seeds alike: more seeds make the scatter of runs smaller, not that shift. So the
         means of batches are compared with the scatter of seeds (F test of lack of fit, batches - 2 degrees of freedom over the seeds'
         own), and unless they agree (p >= 0.25) each batch counts once, by its mean, with batches - 2 degrees of freedom.
Differs: the paper fits in log space by least squares; the stopped runs, the intervals, their Student quantile and the test are ours.
Limits:  a theory of the training loss at tuned rates. A bound over a factor of 1,000 outside what was measured is given as 0 or infinity.
         Unless three batches need ten updates or more, the target is refused: fewer are mostly rounding and warm-up.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.core.paper import Paper
from bigbatch.core.student import student_quantile
from bigbatch.noise.lack_of_fit import f_test
from bigbatch.noise.trade_off_likelihood import REACH, WHAT, Fit, best_at, least, misfit, over_batches, through

PAPER = Paper(
    method="Critical batch from runs",
    title="An Empirical Model of Large-Batch Training",
    authors="McCandlish et al.",
    year=2018,
    arxiv="1812.06162",
    where="Section 2.3",
    study="studies/critical_batch",
)
LEAST_AGREEMENT = 0.25
"""Least p of the test of lack of fit with which the scatter of runs is believed."""
FEW_UPDATES = 10


class Run(NamedTuple):
    """One run to the target, or as far as it got."""

    global_batch: int  # samples
    updates: float  # when it first reached the target; made in all where it did not
    reached: bool = True


class Estimate(NamedTuple):
    """A value with its interval; 0 or infinity where the runs set no bound."""

    value: float
    lower: float
    upper: float


class CriticalBatch(NamedTuple):
    """The fitted trade-off."""

    min_steps: Estimate  # S_min, updates with the largest batch imaginable
    min_samples: Estimate  # E_min, samples with the smallest
    critical_batch: Estimate  # B_crit, samples; infinite where no run shows diminishing returns, 0 where all do nothing else
    sigma: float  # scatter of log S around the fit, corrected for its two parameters
    num_runs: int
    num_censored: int  # of these, stopped before they reached the target
    confidence: float
    lack_of_fit: float = float("nan")  # p of the test; NaN with one seed a batch
    by_batch: bool = False  # whether each batch counted once


class Overhead(NamedTuple):
    """What a batch costs against the two ideals."""

    steps_ratio: float  # S/S_min
    samples_ratio: float  # E/E_min


def steps_needed(global_batch: float, *, min_steps: float, critical_batch: float) -> float:
    """S = S_min (1 + B_crit/B), updates to the target.

    >>> steps_needed(250, min_steps=100, critical_batch=1000)
    500.0
    """
    return min_steps * (1 + critical_batch / global_batch)


def samples_needed(global_batch: float, *, min_samples: float, critical_batch: float) -> float:
    """E = E_min (1 + B/B_crit), samples to the target.

    >>> samples_needed(250, min_samples=100_000, critical_batch=1000)
    125000.0
    """
    return min_samples * (1 + global_batch / critical_batch)


def overhead(global_batch: float, critical_batch: float) -> Overhead:
    """How many times the fewest updates, and the fewest samples, a batch needs: both 2 at the critical batch.

    Raises:
        UserError: If one of the batches is not positive.

    >>> overhead(250, 1000)
    Overhead(steps_ratio=5.0, samples_ratio=1.25)
    """
    check_positive("global_batch", global_batch)
    check_positive("critical_batch", critical_batch)
    return Overhead(1 + critical_batch / global_batch, 1 + global_batch / critical_batch)


def fit_critical_batch(runs: Sequence[Run], confidence: float = 0.95) -> CriticalBatch:
    """Fit the trade-off to runs at three or more batches; several seeds a batch are welcome.

    Args:
        runs: Each at the best rate of its batch, all to one target.
        confidence: Of each two-sided interval, in (0, 1).

    Returns:
        S_min, E_min and B_crit with their intervals.

    Raises:
        UserError: If fewer than three batches reached the target, or an argument is out of range.

    >>> round(fit_critical_batch([Run(100, 1100), Run(500, 300), Run(1000, 200), Run(5000, 120)]).critical_batch.value)
    1000
    """
    f, p_fit, by_batch = _fit_of_batches(runs, confidence)
    num_runs, reached = len(runs), sum(run.reached for run in runs)
    span = (float(f.steps.min()) - REACH, float(f.steps.max()) + REACH)
    min_steps = _interval(f, f.p, span, partial(through, f, math.inf))
    span = (span[0] + float(f.batches.min()), span[1] + float(f.batches.max()))
    min_samples = _interval(f, f.p + f.b, span, lambda v: over_batches(f, lambda b: (v - b, v + 0 * b)))
    critical_batch = _interval(f, f.b, f.range, lambda v: best_at(f, v)[1])
    if f.b > f.range[1] - 0.01:
        min_steps, critical_batch = min_steps._replace(value=0.0, lower=0.0), critical_batch._replace(value=math.inf, upper=math.inf)
    if f.b < f.range[0] + 0.01:
        min_samples, critical_batch = min_samples._replace(value=0.0, lower=0.0), critical_batch._replace(value=0.0, lower=0.0)
    n = int(f.reached.sum())
    sigma = f.sigma * math.sqrt(n / (n - 2))
    return CriticalBatch(min_steps, min_samples, critical_batch, sigma, num_runs, num_runs - reached, confidence, p_fit, by_batch)


def lack_of_fit(runs: Sequence[Run]) -> float:
    """How likely the batches lie so far from the fitted curve by the scatter of seeds alone: p of the F test; NaN where it can't be made.

    >>> seeds = [Run(b, round(s * factor)) for b, s in ((100, 1100), (500, 300), (1000, 200), (5000, 120)) for factor in (0.95, 1.05)]
    >>> lack_of_fit(seeds) > 0.9, lack_of_fit([Run(b, 2 * s if b == 500 else s) for b, s, _ in seeds]) < 0.001
    (True, True)
    """
    reached = [run for run in runs if run.reached]
    groups = {run.global_batch: [math.log(r.updates) for r in reached if r.global_batch == run.global_batch] for run in reached}
    if len(_batches_of_fit(reached)) < 3:
        return math.nan
    f = _fit(reached, 0.95)
    curve = {batch: float(np.logaddexp(f.p, f.p + f.b - math.log(batch))) for batch in groups}
    return f_test([(curve[batch], group) for batch, group in groups.items()], num_parameters=2)


def _fit_of_batches(runs: Sequence[Run], confidence: float) -> tuple[Fit, float, bool]:
    """The fit to the runs, or to the means of batches where these lie too far from it; the p of that; and whether it is to the means.

    Means are not fitted where stopped runs leave fewer than three of them.
    """
    f, p, means = _fit(runs, confidence), lack_of_fit(runs), _means(runs)
    by_batch = p < LEAST_AGREEMENT and len(_batches_of_fit(means)) >= 3
    return (_fit(means, confidence) if by_batch else f), p, by_batch


def _batches_of_fit(runs: Sequence[Run]) -> set[float]:
    """Batches that reached the target, and not within the first updates."""
    return {run.global_batch for run in runs if run.reached and run.updates >= FEW_UPDATES}


def _means(runs: Sequence[Run]) -> list[Run]:
    """One run for each batch, of the geometric mean of its updates; stopped, if one of its runs was."""
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.global_batch, []).append(run)
    return [
        Run(batch, math.exp(sum(math.log(run.updates) for run in group) / len(group)), all(run.reached for run in group))
        for batch, group in groups.items()
    ]


def predicted_steps(runs: Sequence[Run], batches: Sequence[float], confidence: float = 0.95) -> list[Estimate]:
    """The fitted number of updates at each batch, with the interval of the curve (not of a single run).

    Args:
        runs: As in `fit_critical_batch`.
        batches: Samples, > 0.
        confidence: Of each interval.

    Raises:
        UserError: As `fit_critical_batch`, or if a batch is not positive.
    """
    (f, *_), estimates = _fit_of_batches(runs, confidence), []
    for batch in batches:
        check_positive("global_batch", batch)
        value = f.p + float(np.logaddexp(0, f.b - math.log(batch)))
        estimates.append(_interval(f, value, (value - 2 * REACH, value + 2 * REACH), partial(through, f, math.log(batch))))
    return estimates


def min_steps_at(runs: Sequence[Run], critical_batch: float) -> float:
    """The S_min that fits best where B_crit is given, such as by a noise scale.

    Raises:
        UserError: As `fit_critical_batch`, or if `critical_batch` is not positive.

    >>> round(min_steps_at([Run(100, 1100), Run(500, 300), Run(1000, 200), Run(5000, 120)], 1000))
    100
    """
    check_positive("critical_batch", critical_batch)
    return math.exp(best_at(_fit(runs, 0.95), math.log(critical_batch))[0])


def _fit(runs: Sequence[Run], confidence: float) -> Fit:
    if not 0 < confidence < 1:
        raise UserError(f"confidence = {confidence}: must lie between 0 and 1; 0.95 is usual")
    for run in runs:
        check_positive("global_batch", run.global_batch)
        check_positive("updates", run.updates)
    reached, known = ({run.global_batch for run in runs if run.reached or anyway} for anyway in (False, True))
    if len(reached) < 3:
        rule = "two unknowns and a scatter need three at least; lower the target, train longer or add batches"
        raise UserError(f"{len(reached)} of {len(known)} batches reached the target: {rule}")
    beyond = {run.global_batch for run in runs if run.updates >= FEW_UPDATES}
    if len(beyond) < 3:
        counts = ", ".join(f"{run.updates:.0f}" for run in runs[:5]) + (", ..." if len(runs) > 5 else "")
        raise UserError(
            f"updates = {counts}: {len(known) - len(beyond)} of {len(known)} batches reach the target within {FEW_UPDATES} updates, where "
            "warm-up and rounding decide; raise the target"
        )
    batches, steps = (np.log([float(run[i]) for run in runs]) for i in (0, 1))
    span = (float(batches.min()) - REACH, float(batches.max()) + REACH)
    f = Fit(batches, steps, np.array([run.reached for run in runs]), span)
    b, cost = least(lambda bs: np.array([best_at(f, b)[1] for b in np.atleast_1d(bs)]), span)
    p, n = np.array(best_at(f, b)[0]), int(f.reached.sum())
    limit = cost + n / 2 * math.log1p(student_quantile((1 + confidence) / 2, n - 2) ** 2 / (n - 2))
    return f._replace(p=float(p), b=b, sigma=float(misfit(f, p, p + b)[1]), limit=limit)


def _interval(f: Fit, estimate: float, span: tuple[float, float], profile: Callable[[float], float]) -> Estimate:
    """Exponentials of the estimate and of where the profile leaves the limit, below and above."""
    with needed(WHAT, extra="study"):
        from scipy import optimize

    def crossing(end: float, unbounded: float) -> float:
        inside = profile(end) <= f.limit
        return unbounded if inside else math.exp(optimize.brentq(lambda v: profile(v) - f.limit, estimate, end, xtol=1e-6, rtol=1e-9))

    return Estimate(math.exp(estimate), crossing(span[0], 0.0), crossing(span[1], math.inf))
