"""What came of a study of steps to a target: a point a batch, the regimes, how the best settings move; in numbers, rows and words."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.core.metric import Metric, metric_of
from bigbatch.noise.critical_batch import CriticalBatch, Run, fit_critical_batch
from bigbatch.noise.estimate import two_digits
from bigbatch.noise.scaling_regimes import CONFIDENCE, LEAST_BATCHES, Interval, Regimes, fewest_updates, fit_regimes, power_of_batch
from bigbatch.recipe import Recipe
from bigbatch.study.steps.space import LR, MOMENTUM, Space, at_edge, value_text
from bigbatch.study.steps.storage import Trial

FEW_REACHED = 3


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the fewest updates to the target; of equals the first."""
    return min((trial for trial in trials if trial.outcome == "reached"), key=lambda trial: trial.updates, default=None)


class Point(NamedTuple):
    """One batch: what was searched, in the order of the widenings, and all trials."""

    global_batch: int
    spaces: tuple[Space, ...]
    trials: tuple[Trial, ...]
    longest: int  # updates of the longest run that a trial could have

    @property
    def best(self) -> Trial | None:
        """The trial with the fewest updates to the target; None where none reached it."""
        return best_of(self.trials)

    @property
    def feasible(self) -> list[Trial]:
        """Those that did not diverge."""
        return [trial for trial in self.trials if trial.outcome != "diverged"]

    @property
    def steps(self) -> list[float]:
        """Updates to the target of each feasible trial; infinite where it was not reached."""
        return [trial.updates if trial.outcome == "reached" else math.inf for trial in self.feasible]

    @property
    def updates(self) -> Interval | None:
        """The fewest updates to the target."""
        return fewest_updates(self.steps)

    @property
    def edge(self) -> str | None:
        """The field whose best value lies at the edge of what was searched."""
        found = at_edge(self.spaces, self.best.values) if self.best is not None else None
        return found.range.field if found is not None else None

    def count(self, outcome: str) -> int:
        """Trials that ended so."""
        return sum(trial.outcome == outcome for trial in self.trials)


@dataclass(frozen=True)
class StepsStudy:
    """Updates to one target at several batches, all settings tuned anew at each."""

    task: str
    metric: Metric | str
    target: float
    recipe: Recipe
    points: tuple[Point, ...]
    schedule: str = "a constant rate"
    halved: bool = True  # whether trials were halved

    @cached_property
    def regimes(self) -> Regimes | None:
        """The three regimes; None where fewer than four batches reached the target."""
        return fit_regimes(self._steps)

    @property
    def _steps(self) -> dict[int, list[float]]:
        return {point.global_batch: point.steps for point in self.points}

    def _power(self, value: Callable[[Trial], float]) -> Interval | None:
        return power_of_batch(self._steps, {point.global_batch: [value(trial) for trial in point.feasible] for point in self.points})

    @cached_property
    def fit(self) -> CriticalBatch | None:
        """The trade-off of updates and samples of the best trials, as `critical` fits it; None where it can't be fitted."""
        runs = [Run(p.global_batch, p.best.updates) for p in self.points if p.best is not None]
        with contextlib.suppress(UserError):
            return fit_critical_batch(runs, CONFIDENCE)
        return None

    @cached_property
    def lr_slope(self) -> Interval | None:
        """The power of the batch with which the best rate grows."""
        return self._power(lambda trial: float(trial.values[LR])) if self._searched(LR) else None

    @cached_property
    def effective_slope(self) -> Interval | None:
        """The power of the batch with which the best lr/(1 - momentum) grows."""
        if not (self._searched(LR) and self._searched(MOMENTUM)):
            return None
        return self._power(effective_lr)

    def _searched(self, field: str) -> bool:
        return any(each.field == field for each in self.points[0].spaces[0])

    def sentences(self) -> Iterator[str]:
        """The outcome in words."""
        yield from self._regimes_in_words()
        if self.lr_slope is not None:
            yield f"the best rate grows as B^{_two(self.lr_slope)}; the root rule has 0.5, linear scaling 1"
        if self.effective_slope is not None:
            yield f"the best lr/(1 - momentum) grows as B^{_two(self.effective_slope)}"
        if self.fit is not None and 0 < (found := self.fit.critical_batch).value < math.inf:
            upper = "no bound" if found.upper == math.inf else two_digits(found.upper)
            yield f"critical batch of these points: {two_digits(found.value)} [{two_digits(found.lower)}, {upper}] samples"

    def _regimes_in_words(self) -> Iterator[str]:
        found, batches = self.regimes, [point.global_batch for point in self.points if point.best is not None]
        if found is None:
            yield f"no regimes: {len(batches)} of {len(self.points)} batches reached the target, {LEAST_BATCHES} must"
            return
        first, last = min(batches), max(batches)
        if found.perfect_until.value <= first:
            yield f"no perfect scaling from {first:,} on: twice the batch saves less than half of the updates"
        elif found.perfect_until.value >= last:
            yield f"perfect scaling up to {last:,}, the largest batch: twice the batch, half the updates"
        else:
            yield f"perfect scaling up to about {_batch(found.perfect_until)}: twice the batch, half the updates"
        if found.maximal_from.value >= last:
            yield f"updates still fall at {last:,}: maximal data parallelism was not reached"
        else:
            yield f"no fewer updates beyond about {_batch(found.maximal_from)}: maximal data parallelism"

    def doubts(self) -> Iterator[str]:
        """What the study doesn't know, each in one line."""
        metric = metric_of(self.metric)
        yield f"this is for {metric} {metric.exact(self.target)} on validation data, {self.schedule} and {self.recipe.optimizer.name}"
        if self.halved:
            yield "trials were halved: settings that begin slowly and overtake after a third of the longest run are missed"
        for point in self.points:
            batch, reached = point.global_batch, point.count("reached")
            if reached == 0:
                yield f"batch {batch:,}: none of {len(point.feasible)} trials reached the target within {point.longest:,} updates"
            elif reached < FEW_REACHED:
                yield f"batch {batch:,}: {reached} of {len(point.feasible)} trials reached it; more may find fewer updates"
            if point.edge is not None:
                yield f"batch {batch:,}: the best {point.edge} lies at the edge of what was searched; another may be better"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads."""
        regimes = self.regimes
        return {
            "task": self.task,
            "metric": metric_of(self.metric).to_plain(),
            "target": self.target,
            "recipe": self.recipe.to_dict(),
            "schedule": self.schedule,
            "points": [_plain(point) for point in self.points],
            "regimes": None
            if regimes is None
            else {**regimes._asdict(), "perfect_until": regimes.perfect_until._asdict(), "maximal_from": regimes.maximal_from._asdict()},
            "lr_slope": self.lr_slope._asdict() if self.lr_slope is not None else None,
            "effective_slope": self.effective_slope._asdict() if self.effective_slope is not None else None,
            "critical_batch": _finite(self.fit.critical_batch._asdict()) if self.fit is not None else None,
            "sentences": list(self.sentences()),
            "doubts": list(self.doubts()),
        }


COLUMNS = ["batch", "updates", "interval", "samples", "best settings", "reached, stopped, diverged", "note"]


def stored_rows(study: Mapping[str, Any]) -> Iterator[list[str]]:
    """The table of a stored study: one row a batch, in the order of `COLUMNS`."""
    for point in study["points"]:
        batch, best, updates = point["global_batch"], point["best"], point["updates"]
        outcomes = [trial["outcome"] for trial in point["trials"]]
        counts = ", ".join(str(outcomes.count(outcome)) for outcome in ("reached", "stopped", "diverged"))
        note = f"{point['edge']} at the edge" if point["edge"] is not None else ""
        if best is None:
            yield [f"{batch:,}", f"> {point['longest']:,}", "-", f"> {point['longest'] * batch:,}", "-", counts, note]
            continue
        upper = "no bound" if updates["upper"] is None else f"{updates['upper']:,.0f}"
        settings = ", ".join(f"{field.rpartition('.')[2]} {value_text(value)}" for field, value in best["values"].items())
        interval = f"{updates['lower']:,.0f} to {upper}"
        yield [f"{batch:,}", f"{best['updates']:,}", interval, f"{best['updates'] * batch:,}", settings, counts, note]


def effective_lr(trial: Trial) -> float:
    """lr/(1 - momentum): the step that a constant gradient ends in."""
    return float(trial.values[LR] / (1 - trial.values[MOMENTUM]))


def _plain(point: Point) -> dict[str, Any]:
    updates = point.updates
    return {
        "global_batch": point.global_batch,
        "longest": point.longest,
        "updates": updates._asdict() if updates is not None else None,
        "best": point.best._asdict() if point.best is not None else None,
        "edge": point.edge,
        "spaces": [[each._asdict() for each in space] for space in point.spaces],
        "trials": [trial._asdict() for trial in point.trials],
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _two(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.lower:.2f}, {interval.upper:.2f}]"


def _batch(interval: Interval) -> str:
    lower, upper = ("no bound" if end is None else f"{end:,.0f}" for end in (interval.lower, interval.upper))
    return f"{interval.value:,.0f} [{lower}, {upper}]"
