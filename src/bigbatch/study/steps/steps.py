"""Updates to a target over all batches, every setting tuned anew at each: how far does a larger batch save updates, and what does it need?

Protocol: Shallue et al. 2018, arXiv:1811.03600: at each batch a quasi-random search over the settings, the metric is the number of updates
          to the first evaluation on validation data that reaches the target, the fewest over all feasible trials count; trials that diverge
          are kept and do not count; where the best lies at an edge of what was searched, the range goes on there.
Differs:  the paper runs every one of 100 trials for as long as any may need. Here trials are halved (see trials.py), and none runs longer
          than twice the fewest updates of the batch before, or one and a half times those of this one; the rates of a batch are searched
          around the best of the batch before, times the root of the ratio of the two.
Schedule: a constant rate after `WARMUP_UPDATES`, as in `critical`; with "budget.updates" in the space the recipe's own decay, of that
          length, and no halving, as a shorter run is then another one.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.version import __version__
from bigbatch.recipe import Recipe
from bigbatch.runner.jobs import Job, OneAfterAnother, Pool, Whole, run_jobs
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import runner_of
from bigbatch.study.constant_prediction import check_target
from bigbatch.study.constant_rate import EPOCHS, OWN_SCHEDULE, at_constant_rate, keeps_no_schedule
from bigbatch.study.result_files import STEPS
from bigbatch.study.steps.space import LENGTH, LR, LR_REACH, Choice, Range, Space, applied, at_edge, default_space, value_text
from bigbatch.study.steps.storage import Storage, StoredTrials, Trial, check_driver
from bigbatch.study.steps.study import Point, StepsStudy, best_of
from bigbatch.study.steps.trials import Bench, Outcome, expected_runs, limit_of, run_trials
from bigbatch.tasks.task import Task
from bigbatch.train.state.record import environment

RESULT, DATABASE = STEPS, "trials.db"
WHAT = "a search of steps to a target"
EXTENSIONS = 3
"""Times that half as many trials are added: beyond an edge where the best lies; where none reached the target, of runs twice as long."""
LONGEST = 2.0
"""Longest run at a batch, in units of the fewest updates of the batch before."""
FIRST_INTERVAL = 0.01
"""Of the recipe's epochs: between two evaluations at the smallest batch."""
INTERVAL = 0.02
"""Of the updates that the batch before needed: between two evaluations."""


def steps(
    task: Task | Runner | Callable[..., Any] | str,
    recipe: Recipe | None = None,
    *,
    batches: Sequence[int],
    target: float,
    trials: int = 32,
    space: Sequence[Range | Choice] = (),
    max_epochs: float | None = None,
    out: str | Path,
    storage: str | None = None,
    say: Callable[[str], None] | None = None,
    quiet: bool = False,
    pool: Pool | None = None,
) -> StepsStudy:
    """Search the settings at each batch for the fewest updates to a target.

    Args:
        task: A task, or its name; a function `train(recipe, run)`; or another way to run recipes (`bigbatch.runner`), such as a command,
            which must tell validation scores on the way.
        recipe: Where all other fields come from; a shipped task's named recipe if left out.
        batches: Global batches, best powers of two apart, from far below the expected critical batch to far beyond.
        target: Validation score that ends a run, or a better one, as the task's `scores` give it: of accuracy in (0, 1].
        trials: At each batch that do not diverge.
        space: What is searched besides, or instead of, the rate over a factor of 256 and 1 - momentum from 1 down to 0.003. Bounds of
            rates are of the smallest batch.
        max_epochs: Longest run at the smallest batch; 4 times the recipe's epochs if left out.
        out: Folder of `steps.json`, and of the trials where there is no `storage`.
        storage: URL of a data base, such as postgresql://user@host/name, that processes on several machines may use for one study; a SQLite
            file in `out` if left out.
        say: Called with a line of text before each run.
        quiet: Show no progress of the runs themselves.
        pool: Makes the runs; one after another in this process if left out.

    Returns:
        The study.

    Raises:
        UserError: On bad arguments, data or folder, or where a field of the space can't be changed.
        RunFailed: If a run of a function or a command failed.
        Interrupted: After Ctrl-C; the same call goes on with the trials that are missing.
    """
    with needed(WHAT, extra="steps"):
        import optuna  # noqa: F401
        import scipy  # noqa: F401
    if storage is not None:
        check_driver(storage)
    runner = runner_of(task)
    chosen = sorted({int(batch) for batch in batches})
    _check(chosen, trials, max_epochs)
    reference = (recipe or Recipe.named(runner.name)).replace({"batch.rule": None})
    check_target(runner, reference, target)
    constant = keeps_no_schedule(runner)
    epochs = (EPOCHS if constant else 1.0) * reference.total_epochs if max_epochs is None else max_epochs
    lengths = any(each.field == LENGTH for each in space)
    settings = _Settings(runner, reference, target, trials, tuple(space), epochs, constant and not lengths)
    with owned(Path(out)) as folder, Storage(storage or f"sqlite:///{folder / DATABASE}", shared=storage is not None) as kept:
        points: list[Point] = []
        of_a_batch = expected_runs(trials, halves=settings.at_constant_rate)
        whole = Whole(expected=of_a_batch * len(chosen))
        with pool or OneAfterAnother() as runs_of:
            for batch in chosen:
                points.append(_measure(settings, batch, points, kept, _Runs(settings, runs_of, folder, say, whole, quiet=quiet)))
                whole.done = of_a_batch * len(points)
        study = StepsStudy(runner.name, runner.metric, target, reference, tuple(points), *settings.words())
        facts = {"trials": trials, "max_epochs": epochs, "version": __version__, "environment": environment(choose_device())}
        write_atomically(folder / RESULT, f"{json.dumps({**study.to_dict(), **facts}, indent=2)}\n".encode())
        return study


class _Settings(NamedTuple):
    """What holds for all batches."""

    runner: Runner
    reference: Recipe
    target: float
    trials: int
    space: Space
    epochs: float
    at_constant_rate: bool

    def recipe(self, batch: int) -> Recipe:
        """At another batch, with the root of the multiple in its rates."""
        return at_constant_rate(self.reference, batch, self.epochs, self.runner, constant=self.at_constant_rate)

    def asked(self, recipe: Recipe) -> dict[str, Any]:
        """What trials of a batch are of, as JSON has it."""
        given = json.loads(json.dumps([list(each) for each in self.space]))
        return {"target": self.target, "recipe": recipe.to_toml(), "space": given}

    def words(self) -> tuple[str, bool]:
        """What is said of the schedule, and whether trials were halved."""
        if self.at_constant_rate:
            return "a constant rate", True
        if any(each.field == LENGTH for each in self.space):
            return f"a {self.reference.schedule.decay.kind} decay over a length that is searched", False
        return OWN_SCHEDULE.format(epochs=self.epochs), False


def _check(batches: Sequence[int], trials: int, max_epochs: float | None) -> None:
    if len(batches) < 2:
        raise UserError(f"batches = {list(batches)}: must be two different ones at least; regimes need four")
    for batch in batches:
        check_positive("batches", batch)
    check_positive("trials", trials)
    if max_epochs is not None:
        check_positive("max_epochs", max_epochs)


def _measure(settings: _Settings, batch: int, before: Sequence[Point], storage: Storage, runs: "_Runs") -> Point:
    """Search one batch: first around what was best at the batch before, then on where the best lies at an edge."""
    recipe = settings.recipe(batch)
    known = [point for point in before if point.best is not None]
    longest = recipe.num_updates if not known else max(1, math.ceil(LONGEST * known[-1].best.updates))  # type: ignore[union-attr]
    runs.begin(recipe, known)
    spaces: list[Space] = [_space(settings, recipe, known)]
    trials: list[Trial] = []
    for number in range(EXTENSIONS + 1):
        space, wanted = spaces[-1], settings.trials if number == 0 else math.ceil(settings.trials / 2)
        name, seed = f"{settings.runner.name}, batch {batch}, range {number}", settings.reference.seed + 1000 * number
        stored = StoredTrials(storage, name, space, longest=longest, seed=seed, asked=settings.asked(recipe))
        space, longest = stored.space, stored.longest
        spaces[-1] = space
        how = settings.runner.metric.rank, limit_of(trials, longest), settings.at_constant_rate
        trials += run_trials(stored, wanted, Bench(runs, *how))
        best = best_of(trials)
        edge = at_edge(spaces, best.values) if best is not None else None
        if number == EXTENSIONS or (best is not None and edge is None):
            break
        if edge is None:
            longest *= 2
        spaces.append(space if edge is None else (*space[: edge.position], edge.range, *space[edge.position + 1 :]))
    return Point(batch, tuple(spaces), tuple(trials), longest)


def _space(settings: _Settings, recipe: Recipe, known: Sequence[Point]) -> Space:
    """What is searched first at a batch; the rates around those of the batch before."""
    given = {each.field: each for each in settings.space}
    space = {each.field: each for each in default_space(recipe)} | given
    if known and isinstance(rates := space.get(LR), Range):
        best, k = known[-1].best, recipe.batch.global_batch / known[-1].global_batch
        centre = best.values[LR] * math.sqrt(k)  # type: ignore[union-attr]
        reach = math.sqrt(rates.high / rates.low) if LR in given else LR_REACH
        space[LR] = rates._replace(low=centre / reach, high=centre * reach)
    for field in space:
        if not settings.runner.can_change(field):
            raise UserError(f"{settings.runner.name}: has no place for {field}, which is searched; add it to the command, or leave it out")
    settings.runner.check(applied(recipe, {each.field: each.at(0.5) for each in space.values()}))
    return tuple(space.values())


class _Runs:
    """Makes the runs of a batch to the target."""

    def __init__(
        self, settings: _Settings, pool: Pool, folder: Path, say: Callable[[str], None] | None, whole: Whole, *, quiet: bool
    ) -> None:
        self._settings, self._pool, self._folder, self._say, self._whole, self._quiet = settings, pool, folder, say, whole, quiet

    def begin(self, recipe: Recipe, known: Sequence[Point]) -> None:
        """Run this recipe from now on; evaluations are a few per cent of the run apart."""
        self._recipe = recipe
        if not known:
            self._interval = FIRST_INTERVAL * self._settings.reference.total_epochs
            return
        updates = max(1, round(INTERVAL * known[-1].best.updates))  # type: ignore[union-attr]
        self._interval = updates * recipe.batch.global_batch / recipe.num_train_samples

    def __call__(self, wanted: Sequence[tuple[dict[str, Any], int, int]]) -> list[Outcome]:
        """Make runs of values, a seed, and the most updates each."""
        jobs = [self._job(*each) for each in wanted]
        results = run_jobs(self._pool, self._settings.runner, jobs, self._say, whole=self._whole)
        return [
            Outcome(r.updates, r.reached and not r.diverged, r.diverged, None if r.diverged else _finite(r.best_validation_score))
            for r in results
        ]

    def _job(self, values: Mapping[str, Any], seed: int, limit: int) -> Job:
        recipe = applied(self._recipe, {**values, "seed": seed})
        if self._settings.at_constant_rate and recipe.budget.updates is not None:
            recipe = recipe.replace({"budget.updates": limit})
        shown = ", ".join(f"{field.rpartition('.')[2]} {value_text(value)}" for field, value in values.items())
        title = f"batch {recipe.batch.global_batch:,}, {shown}"
        name = hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:12]
        out = self._folder / "runs" / name if self._settings.runner.wants_folder else None
        asked: dict[str, Any] = {"target": self._settings.target, "evaluate_every": self._interval, "measure_test": False}
        return Job(recipe, Request(out=out, title=title, quiet=self._quiet, **asked), f"{title}: at most {recipe.num_updates:,} updates")


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None
