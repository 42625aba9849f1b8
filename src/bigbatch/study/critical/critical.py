"""Updates to a target at several batches, each at its own best rate: where do larger batches stop paying?

Protocol: Shallue et al. 2018, arXiv:1811.03600, on a small budget: the rate is searched at every batch, the metric is the number of
          updates to the first evaluation on validation data that reaches the target, a diverged run is no candidate, and a best rate at
          the edge of the range moves the range.
Rate:     constant, after a straight warm-up of `WARMUP_UPDATES` at every batch, so that no budget bends the curve. (A warm-up of as many
          updates at every batch adds a constant to S, which the formula has in S_min.) The search starts from the recipe's rate times the
          root of the multiple of its batch, and its factors are tried from the middle outwards; a candidate is stopped where it can no
          longer beat the best so far.
Clock:    evaluations are a few per cent of the run apart, which is how finely updates to the target are known, at every batch alike; so
          small batches, whose scores flicker more, get no more chances to pass the target by luck.
Differs:  Shallue et al. search all settings with 100 trials a batch; here only the rate is searched, on one seed. The other seeds run at
          the rate that this seed chose, and its own run there is kept: a little luck is in it, at every batch.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.json_lines import append_line, stored_lines
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.version import __version__
from bigbatch.noise.trade_off_likelihood import WHAT
from bigbatch.recipe import Recipe
from bigbatch.runner.jobs import Job, OneAfterAnother, Pool, Whole, run_jobs
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import runner_of
from bigbatch.study.constant_prediction import check_target
from bigbatch.study.constant_rate import EPOCHS, OWN_SCHEDULE, at_constant_rate, keeps_no_schedule, rates_of
from bigbatch.study.critical.study import CriticalStudy, Point, Trial
from bigbatch.study.result_files import CRITICAL
from bigbatch.tasks.task import Task
from bigbatch.train.state.record import environment
from bigbatch.train.state.result import Result

EXTENSIONS = 3
"""Steps by which the range of rates may grow where the best lies at its edge."""
FIRST_INTERVAL = 0.01
"""Of the recipe's epochs: between two evaluations at the smallest batch, whose run takes some of them."""
INTERVAL = 0.025
"""Of the samples that the batch before needed: between two evaluations. A larger batch needs at least as many."""
RESULT = CRITICAL


def critical(
    task: Task | Runner | Callable[..., Any] | str,
    recipe: Recipe | None = None,
    *,
    batches: Sequence[int],
    target: float,
    seeds: int = 1,
    lr_factors: Sequence[float] = (0.5, 1, 2),
    max_epochs: float | None = None,
    evaluate_every: float | None = None,
    out: str | Path,
    noise: float | None = None,
    say: Callable[[str], None] | None = None,
    quiet: bool = False,
    pool: Pool | None = None,
) -> CriticalStudy:
    """Measure how many updates each batch needs to a target, and fit the critical batch.

    Args:
        task: A task, or its name; a function `train(recipe, run)`; or another way to run recipes (`bigbatch.runner`), such as a command,
            which must tell validation scores on the way. A script whose schedule can't be changed keeps it, over its budget.
        recipe: Where all fields but batch, rate, schedule and budget come from; a shipped task's named recipe if left out.
        batches: Global batches, three at least, best a factor of 4 apart and on both sides of the expected critical batch.
        target: Validation score that ends a run, or a better one, as the task's `scores` give it: of accuracy in (0, 1]. Every batch should
            be able to reach it at a constant rate.
        seeds: Runs a batch at its best rate, from the recipe's own seed on.
        lr_factors: Times the recipe's rate times sqrt(batch / recipe's batch). One factor alone is no search: the range never moves.
        max_epochs: Budget of a run; 4 times the recipe's epochs if left out, and the recipe's own for a script that keeps its schedule. A
            run that ends there counts as needing more.
        evaluate_every: Epochs between evaluations on the validation set. Left out: at the smallest batch a hundredth of the recipe's
            epochs, at every other 2.5 % of the samples that the batch before needed; never more often than every update.
        out: Folder of `runs.jsonl`, a line a finished run, and `critical.json`. Runs found there are not repeated.
        noise: A noise scale in samples, to compare with.
        say: Called with a line of text before each run.
        quiet: Show no progress.
        pool: Makes the runs; one after another in this process if left out.

    Returns:
        The study; its fit is there as soon as three batches reached the target.

    Raises:
        UserError: On bad arguments, data or folder, or where the learning rate can't be changed.
        RunFailed: If a run of a function or a command failed.
        Interrupted: After Ctrl-C; the same call goes on with the next run.
    """
    with needed(WHAT, extra="study"):  # at the end, after hours
        import scipy  # noqa: F401
    chosen = sorted({int(batch) for batch in batches})
    runner = runner_of(task)
    _check(chosen, seeds, lr_factors, noise)
    reference = (recipe or Recipe.named(runner.name)).replace({"batch.rule": None})
    check_target(runner, reference, target)
    constant = keeps_no_schedule(runner)
    epochs = (EPOCHS if constant else 1.0) * reference.total_epochs if max_epochs is None else max_epochs
    check_positive("max_epochs", epochs)
    if evaluate_every is not None:
        check_positive("evaluate_every", evaluate_every)
    recipes = [at_constant_rate(reference, batch, epochs, runner, constant=constant) for batch in chosen]
    with owned(Path(out)) as folder, pool or OneAfterAnother() as runs_of:
        bench = _Bench(runner, runs_of, target, folder, evaluate_every, say, quiet=quiet, limits=constant)
        bench.whole.expected = len(recipes) * (len(set(lr_factors)) + seeds - 1)
        points: list[Point] = []
        interval = FIRST_INTERVAL * reference.total_epochs
        for at_batch in recipes:
            bench.interval = evaluate_every or interval
            points.append(_measure(bench, at_batch, seeds, lr_factors))
            if (updates := points[-1].updates) is not None:
                interval = INTERVAL * updates * points[-1].global_batch / reference.num_train_samples
        own: dict[str, Any] = {} if constant else {"notes": (OWN_SCHEDULE.format(epochs=epochs),), "schedule": "the script's own schedule"}
        study = CriticalStudy(runner.name, runner.metric, target, reference, tuple(points), noise, **own)
        facts = {
            "max_epochs": epochs,
            "lr_factors": list(lr_factors),
            "seeds": seeds,
            "version": __version__,
            "environment": environment(choose_device()),
        }
        write_atomically(folder / RESULT, f"{json.dumps({**study.to_dict(), **facts}, indent=2)}\n".encode())
        return study


def _check(batches: Sequence[int], seeds: int, lr_factors: Sequence[float], noise: float | None) -> None:
    if len(batches) < 3:
        raise UserError(f"batches = {batches}: two unknowns and a scatter need three different ones at least; add batches")
    for batch in batches:
        check_positive("batches", batch)
    check_positive("seeds", seeds)
    if not lr_factors:
        raise UserError("lr_factors = []: must hold one at least; (0.5, 1, 2) is usual")
    for factor in lr_factors:
        check_positive("lr_factors", factor)
    if noise is not None:
        check_positive("noise", noise, "measure over more updates, or leave it out")


def _measure(bench: "_Bench", recipe: Recipe, seeds: int, lr_factors: Sequence[float]) -> Point:
    """Search the rate on the first seed, from the middle outwards, then run the others at it."""

    def trials(wanted: Sequence[tuple[float, int]], limit: int | None = None) -> list[Trial]:
        changes = [{**{name: factor * recipe.get(name) for name in rates_of(recipe)}, "seed": seed} for factor, seed in wanted]
        limited = {} if limit is None or not bench.limits else {"budget.updates": limit}
        return bench.run_all([recipe.replace({**change, **limited}) for change in changes])

    tried: dict[float, Trial] = {}

    def attempt(factors: Sequence[float]) -> None:
        limit = min((t.updates for t in tried.values() if t.reached), default=None)
        tried.update(zip(factors, trials([(factor, recipe.seed) for factor in factors], limit), strict=True))

    middle, *outer = sorted(set(lr_factors), key=lambda f: (abs(math.log(f)), f))
    attempt([middle])
    attempt(outer)
    for _ in range(EXTENSIONS):
        beyond = next_factor(sorted(tried), best_factor(tried, bench.metric))
        if beyond is None:
            break
        bench.whole.expected += 1
        attempt([beyond])
    best = best_factor(tried, bench.metric)
    runs = [tried[best], *trials([(best, recipe.seed + i) for i in range(1, seeds)])]
    by_rate = tuple(tried[factor] for factor in sorted(tried))
    at_edge = next_factor(sorted(tried), best) is not None
    return Point(recipe.batch.global_batch, tried[best].lr, at_edge, tuple(runs), by_rate)


def best_factor(tried: Mapping[float, Trial], metric: Metric = ACCURACY) -> float:
    """The factor with the fewest updates to the target; where none reached it, with the best score; where all diverged, the smallest.

    Of equals the one nearest to 1.
    """

    def rank(factor: float) -> tuple[int, float, float]:
        trial, off = tried[factor], abs(math.log(factor))
        if trial.diverged:
            return 2, factor, off
        return (0, trial.updates, off) if trial.reached else (1, metric.rank(trial.best_score), off)

    return min(tried, key=rank)


def next_factor(factors: Sequence[float], best: float) -> float | None:
    """One step beyond the edge where the best lies; None where it does not, or nothing is searched.

    >>> next_factor([0.5, 1, 2], 2), next_factor([0.5, 1, 2], 0.5), next_factor([0.5, 1, 2], 1)
    (4.0, 0.25, None)
    """
    if len(factors) < 2:
        return None
    if best == factors[-1]:
        return factors[-1] ** 2 / factors[-2]
    return factors[0] ** 2 / factors[1] if best == factors[0] else None


_TRIAL = TypeAdapter(Trial)


class _Bench:
    """Runs recipes to the target, or finds that they have been run."""

    def __init__(
        self,
        runner: Runner,
        pool: Pool,
        target: float,
        folder: Path,
        asked: float | None,
        say: Callable[[str], None] | None,
        *,
        quiet: bool,
        limits: bool,
    ) -> None:
        self.whole = Whole(expected=0)
        self.interval = 1.0  # epochs between evaluations
        self.limits = limits  # whether a shorter budget is the same run, ended earlier
        self._runner, self._pool, self._target, self._folder, self._asked = runner, pool, target, folder, asked
        self._say, self._quiet, self._path = say, quiet, folder / "runs.jsonl"
        self.metric = runner.metric
        self._done = {self._stored_identity(line): line for line in stored_lines(self._path, self._stored_identity)}

    def run_all(self, recipes: Sequence[Recipe]) -> list[Trial]:
        """One trial a recipe."""
        identities = [self._identity(recipe, self._target, self._asked) for recipe in recipes]
        jobs = []
        for recipe, identity in zip(recipes, identities, strict=True):
            title = f"batch {recipe.batch.global_batch:,}, rate {recipe.optimizer.lr:.3g}, seed {recipe.seed}"
            if identity not in self._done:
                jobs.append(self._job(recipe, identity, title))
                continue
            self.whole.found()
            if self._say is not None:
                self._say(f"{title}: found finished")

        def done(number: int, result: Result) -> None:
            recipe = jobs[number].recipe
            line = {**self._trial(recipe, result)._asdict(), "target": self._target, "asked_interval": self._asked}
            line |= {"interval": self.interval, "metric": self.metric.to_plain(), "recipe": recipe.to_dict()}
            identity = self._identity(recipe, self._target, self._asked)
            self._done[identity] = {"global_batch": recipe.batch.global_batch, **line}
            append_line(self._path, self._done[identity])

        run_jobs(self._pool, self._runner, jobs, self._say, done=done, whole=self.whole)
        return [Trial(**{name: self._done[identity][name] for name in Trial._fields}) for identity in identities]

    def _job(self, recipe: Recipe, identity: str, title: str) -> Job:
        name = f"{title.replace(', ', '-').replace(' ', '-').replace(',', '')}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        out = self._folder / "runs" / name if self._runner.wants_folder else None
        asked: dict[str, Any] = {"target": self._target, "evaluate_every": self.interval, "measure_test": False}
        request = Request(out=out, title=title, quiet=self._quiet, **asked)
        return Job(recipe, request, f"{title}: at most {recipe.num_updates:,} updates")

    def _trial(self, recipe: Recipe, result: Result) -> Trial:
        lr, seed = recipe.optimizer.lr, recipe.seed
        if result.diverged:
            return Trial(lr, seed, result.updates, False, True, self._finite(math.nan), None)
        score = self._finite(result.best_validation_score)
        return Trial(lr, seed, result.updates, result.reached, False, score, round(result.train_s, 2))

    def _finite(self, score: float) -> float | None:
        """JSON has no other numbers: where there is no score, the worst that there is, None if scores have no bound."""
        return next((value for value in (score, self.metric.of_diverged) if math.isfinite(value)), None)

    @classmethod
    def _stored_identity(cls, line: Mapping[str, Any]) -> str:
        """What a line is of; recipes are read anew: fields added since have their defaults.

        Raises:
            ValueError: If it is of no run.
        """
        _TRIAL.validate_json(json.dumps({name: line[name] for name in Trial._fields}), strict=True)
        return cls._identity(Recipe.from_saved(line["recipe"]), line["target"], line["asked_interval"])

    @staticmethod
    def _identity(recipe: Recipe, target: float, asked: float | None) -> str:
        return json.dumps([recipe.to_dict(), target, asked], sort_keys=True)
