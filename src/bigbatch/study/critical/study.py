"""What came of a study of the critical batch: the fitted trade-off in numbers, rows and words, each with what it doesn't know."""

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.notebook import Content, Displayed
from bigbatch.noise.critical_batch import CriticalBatch, Estimate, Run, fit_critical_batch, min_steps_at, predicted_steps
from bigbatch.noise.estimate import two_digits
from bigbatch.recipe import Recipe

CONFIDENCE = 0.95
CURVE_POINTS = 33


class Trial(NamedTuple):
    """One run: until its first evaluation at the target, until its budget ended, or until it diverged."""

    lr: float
    seed: int
    updates: int
    reached: bool
    diverged: bool
    best_score: float | None  # best validation score seen; where none is finite, the worst there is, or None if scores have no bound
    train_s: float | None  # seconds in updates


class Point(NamedTuple):
    """One batch: the rates tried, and the runs of all seeds at the best of them."""

    global_batch: int
    lr: float
    at_edge: bool  # the best rate is the lowest or the highest that was tried
    runs: tuple[Trial, ...]
    tried: tuple[Trial, ...]  # on the first seed, by rate

    @property
    def num_diverged(self) -> int:
        """Runs that diverged at the best rate: left out of the fit."""
        return sum(run.diverged for run in self.runs)

    @property
    def num_stopped(self) -> int:
        """Runs whose budget ended before the target: in the fit as such."""
        return sum(not run.reached and not run.diverged for run in self.runs)

    @property
    def updates(self) -> float | None:
        """Geometric mean of the updates to the target; None where no run reached it."""
        reached = [run.updates for run in self.runs if run.reached]
        return statistics.geometric_mean(reached) if reached else None


@dataclass(frozen=True, repr=False)
class CriticalStudy(Displayed):
    """Updates to one target at several batches, each at its own best rate, and the trade-off fitted to them."""

    task: str
    metric: Metric | str
    target: float
    recipe: Recipe
    points: tuple[Point, ...]
    noise: float | None = None  # a noise scale to compare with, samples
    notes: tuple[str, ...] = ()  # further doubts
    schedule: str = "a constant rate"

    @property
    def runs(self) -> list[Run]:
        """What is fitted: every run at the best rate of its batch that did not diverge."""
        return [Run(p.global_batch, run.updates, run.reached) for p in self.points for run in p.runs if not run.diverged]

    @cached_property
    def fit(self) -> CriticalBatch | None:
        """The trade-off; None where fewer than three batches reached the target, or it is reached at once."""
        with contextlib.suppress(UserError):
            return fit_critical_batch(self.runs, CONFIDENCE)
        return None

    @property
    def _told_too_seldom(self) -> bool:
        """Whether no run tells how many updates the target takes: each met it at the first score that it told, after as many updates."""
        counts = {run.updates for point in self.points for run in point.runs if run.reached}
        return len(self.points) > 1 and len(counts) == 1 and all(run.reached or run.diverged for p in self.points for run in p.runs)

    def sentence(self) -> str:
        """The outcome in words."""
        if self._told_too_seldom:
            (updates,) = {run.updates for point in self.points for run in point.runs if run.reached}
            harder = metric_of(self.metric).harder
            return (
                f"nothing can be said: every run met the target at update {updates:,}, so that they differ by less than their scores are "
                f"apart; tell scores more often, or {harder} the target"
            )
        if self.fit is not None:
            return in_words(self.fit, [point.global_batch for point in self.points])
        reached = sum(point.updates is not None for point in self.points)
        easier, harder = metric_of(self.metric).easier, metric_of(self.metric).harder
        if reached < 3:
            return f"no fit: {reached} of {len(self.points)} batches reached the target, three must; {easier} the target or train longer"
        return f"no fit: the target is reached within the first updates, where warm-up and rounding decide; {harder} the target"

    def doubts(self) -> Iterator[str]:
        """What the study doesn't know, each in one line."""
        target = metric_of(self.metric).exact(self.target)
        yield (
            f"this is for {self.metric} {target} on validation data, {self.schedule} and {self.recipe.optimizer.name}; "
            "a harder target has a larger critical batch"
        )
        yield from self.notes
        if len(self.runs) == len(self.points):
            yield "one run a batch: what seeds change and what the formula misses can't be told apart; run more seeds"
        if self.fit is not None and self.fit.by_batch:
            yield (
                f"batches lie further from the curve than seeds explain (p = {self.fit.lack_of_fit:.2g}), as where a rate is off at some: "
                "the intervals count each batch once, so more batches narrow them, and more seeds do not"
            )
        elif len(self.runs) != len(self.points):
            yield "batches lie as near to the curve as seeds do: the intervals hold the scatter between runs"
        for point in self.points:
            if point.at_edge:
                yield f"batch {point.global_batch:,}: its best rate, {point.lr:.3g}, is at the edge of those tried; another may be better"

    def noise_in_words(self) -> str | None:
        """How the noise scale compares; None where there is none, or no fit."""
        if self.noise is None or self.fit is None:
            return None
        critical = self.fit.critical_batch
        inside = critical.lower <= self.noise <= critical.upper
        against = "inside" if inside else "outside"
        ratio = f", {self.noise / critical.value:.2g} times it" if 0 < critical.value < math.inf else ""
        return f"the noise scale, {two_digits(self.noise)} samples, lies {against} the interval of the critical batch{ratio}"

    def shown(self) -> Content:
        """What a notebook shows: the fit in words, and a row a run at the best rate of its batch."""
        names = Trial._fields
        rows = [[point.global_batch, *run] for point in self.points for run in point.runs]
        return Content([f"{self.task}: {self.sentence()}", *self.doubts()], ["global_batch", *names], rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads. An infinite bound is None."""
        metric = metric_of(self.metric).to_plain()
        stored: dict[str, Any] = {"task": self.task, "metric": metric, "target": self.target, "recipe": self.recipe.to_dict()}
        stored["points"] = [
            {**p._asdict(), "runs": [r._asdict() for r in p.runs], "tried": [t._asdict() for t in p.tried]} for p in self.points
        ]
        stored |= {"sentence": self.sentence(), "doubts": list(self.doubts()), "fit": None, "curve": [], "noise": None}
        if self.fit is None:
            return stored
        stored["fit"] = {name: _plain(value) if isinstance(value, Estimate) else value for name, value in self.fit._asdict().items()}
        ends = [point.global_batch for point in self.points]
        batches = _between(min(ends) / 2, 2 * max(ends))
        curve = zip(batches, predicted_steps(self.runs, batches, CONFIDENCE), strict=True)
        stored["curve"] = [{"global_batch": batch, **_plain(steps)} for batch, steps in curve]
        if self.noise is not None:
            stored["noise"] = {"noise_scale": self.noise, "min_steps": min_steps_at(self.runs, self.noise), "words": self.noise_in_words()}
        return stored


class Row(NamedTuple):
    """One line of the table of a study."""

    batch: str
    lr: str
    updates: str
    samples: str
    steps_ratio: str  # S/S_min
    samples_ratio: str  # E/E_min
    note: str


def rows_of(study: CriticalStudy) -> Iterator[Row]:
    """The table: one row a batch; updates are the geometric mean over the seeds that reached the target."""
    fit = study.fit
    return rows_of_points(study.points, None if fit is None else (fit.min_steps.value, fit.min_samples.value))


def stored_rows(study: Mapping[str, Any]) -> Iterator[Row]:
    """The same of a study as `CriticalStudy.to_dict` gives it."""
    trials = [{**p, "runs": tuple(Trial(**r) for r in p["runs"]), "tried": tuple(Trial(**t) for t in p["tried"])} for p in study["points"]]
    fit = study["fit"]
    fewest = None if fit is None else (fit["min_steps"]["value"] or 0.0, fit["min_samples"]["value"] or 0.0)
    return rows_of_points([Point(**point) for point in trials], fewest)


def rows_of_points(points: Sequence[Point], fewest: tuple[float, float] | None) -> Iterator[Row]:
    """The table, with the fewest updates and samples of a fit, if there is one."""
    for point in points:
        batch, updates = point.global_batch, point.updates
        notes = [f"{point.num_stopped} of {len(point.runs)} stopped before the target"] * bool(point.num_stopped)
        notes += [f"{point.num_diverged} of {len(point.runs)} diverged, left out"] * bool(point.num_diverged)
        notes += ["rate at the edge"] * point.at_edge
        if updates is None:
            stopped = [run.updates for run in point.runs if not run.diverged]
            if not stopped:
                yield Row(f"{batch:,}", f"{point.lr:.3g}", "-", "-", "-", "-", "; ".join(notes))
                continue
            most = max(stopped)
            yield Row(f"{batch:,}", f"{point.lr:.3g}", f"> {most:,}", f"> {most * batch:,}", "-", "-", "; ".join(notes))
            continue
        ratios = ("-", "-") if fewest is None else (_ratio(updates, fewest[0]), _ratio(updates * batch, fewest[1]))
        yield Row(f"{batch:,}", f"{point.lr:.3g}", f"{updates:,.0f}", f"{updates * batch:,.0f}", *ratios, "; ".join(notes))


def in_words(fit: CriticalBatch, batches: Sequence[int]) -> str:
    """The fit in one sentence."""
    found, percent = fit.critical_batch, f"{100 * fit.confidence:g} %"
    if found.value == math.inf:
        least = f"above {two_digits(found.lower)}" if found.lower else "anywhere"
        return f"no diminishing returns up to {max(batches):,}: the critical batch lies {least} ({percent}); add larger batches"
    if found.value == 0:
        most = f"below {two_digits(found.upper)}" if found.upper < math.inf else "anywhere"
        return (
            f"the number of updates hardly falls from {min(batches):,} on: the critical batch lies {most} ({percent}); add smaller batches"
        )
    upper = "no bound" if found.upper == math.inf else two_digits(found.upper)
    fewest = (
        f"twice the fewest updates ({two_digits(fit.min_steps.value)}) and twice the fewest samples ({two_digits(fit.min_samples.value)})"
    )
    return f"critical batch about {two_digits(found.value)} [{two_digits(found.lower)}, {upper}] samples ({percent}): there, {fewest}"


def _ratio(value: float, ideal: float) -> str:
    return f"{value / ideal:.2f}" if ideal else "-"


def _plain(estimate: Estimate) -> Mapping[str, float | None]:
    return {name: None if value == math.inf else value for name, value in estimate._asdict().items()}


def _between(lowest: float, highest: float) -> list[float]:
    return [lowest * (highest / lowest) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
