"""What a run that is not `fit`'s own tells of itself: its record, its scores, and whether it has reached its target."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from bigbatch.core.checks import CheckpointError, Diverged, RecipeError, RunFailed, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.metric import Metric
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.reading import read_json
from bigbatch.core.storage.writing import make_folder, remove_leftovers, write_atomically
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Request
from bigbatch.train.state.file_names import RUNNER
from bigbatch.train.state.folder import finished_result, write_recipe
from bigbatch.train.state.record import Record
from bigbatch.train.state.record_lines import read_record_lines
from bigbatch.train.state.result import Result

OUTPUT, CHECKPOINTS = OWN_FILES = ("output", "checkpoints")
"""Folders of a run's own, which are there again when it goes on: of a command and of a function."""


class TargetReached(Exception):
    """A validation score is as good as the target: the run ends here. Let it through."""


class RunLog:
    """The record of one run of a function or a command.

    Args:
        name: Of what is trained.
        recipe: Of the run.
        request: Of the study.
        metric: What scores are.

    Attributes:
        validation: The newest validation score; NaN: none yet.
        best: The best of them.
        test: The test score; NaN: none yet.
        reached: Whether validation has reached the target.
        wants_test: Whether a test score is asked for.
    """

    def __init__(self, name: str, recipe: Recipe, request: Request, metric: Metric) -> None:
        self.validation = self.best = self.test = math.nan
        self.reached, self.wants_test = False, request.measure_test
        self._name, self._recipe, self._request, self._metric = name, recipe, request, metric
        self._clock, self._began, self._before_s = Clock(), time.perf_counter(), 0.0
        self._opened: Record | None = None
        self._earlier = _earlier_lines(request.out)
        if request.out is not None:
            write_recipe(request.out, recipe)
        if not self._earlier:
            self._open(Clock())

    def _open(self, clock: Clock) -> Record:
        """The record. A run that goes on from files of its own keeps what an earlier attempt told before the first that it tells itself."""
        if self._opened is not None:
            return self._opened
        kept = [line for line in self._earlier if line.get("samples", 0) < clock.samples]
        at = Clock(*(max((line.get(name, 0) for line in kept), default=0) for name in ("samples", "update")))
        tensorboard = None if self._request.out is not None else False
        self._opened = record = Record(self._request.out, at, tensorboard=tensorboard, metric=self._metric, whole=False).open()
        if self._request.out is not None and not record.begun:
            record.start(self._recipe, task=self._name)
        for line in kept:
            self._before_s = line.get("seconds", self._before_s)
            if line["kind"] == "evaluation" and line["split"] == "validation" and self._metric.is_better(line["score"], self.best):
                self.best = line["score"]
        return record

    @property
    def _seconds(self) -> float:
        """Since the run began, without the time between two attempts."""
        return self._before_s + time.perf_counter() - self._began

    def log(
        self,
        *,
        updates: float | None = None,
        samples: float | None = None,
        epochs: float | None = None,
        loss: float | None = None,
        score: float | None = None,
        **facts: float,
    ) -> None:
        """Where the run stands, in one of the three units, with its training loss, its validation score, and anything else.

        Raises:
            Diverged: If the loss or the score is not finite.
            TargetReached: If the score is as good as the target.
            RunFailed: If no position is given and a score needs one, or a value is no number.
        """
        updates, samples, epochs = (_number(n, v) for n, v in (("updates", updates), ("samples", samples), ("epochs", epochs)))
        loss, score = _number("loss", loss), _number("score", score)
        facts = {name: value for name, given in facts.items() if (value := _number(name, given)) is not None}
        self._clock = clock = self._clock_at(updates, samples, epochs)
        record = self._open(clock)
        for what, value in (("loss", loss), ("validation score", score)):
            if value is not None and not math.isfinite(value):
                raise Diverged(f"{what} = {value} after update {clock.updates:,}: must be finite", update=clock.updates)
        if loss is not None or facts:
            record.reported(clock, loss, facts, seconds=self._seconds)
        if score is None:
            return
        self.validation = self.checked(score)
        self.best = score if self._metric.is_better(score, self.best) else self.best
        record.score(clock, "validation", score, seconds=self._seconds)
        target = self._request.target
        if target is not None and self._metric.reaches(score, target):
            self.reached = True
            raise TargetReached(f"validation {self._metric} {self._metric.exact(score)}: the target is reached")

    def score(self, value: float) -> None:
        """The test score of the final weights.

        Raises:
            Diverged: If it is not finite.
            RunFailed: If it is no number.
        """
        value = float(_number("score", value) or 0.0)
        if not math.isfinite(value):
            raise Diverged(f"test score = {value}: must be finite", update=self._clock.updates or None)
        self.test = self.checked(value)

    def noise(self, updates: Sequence[dict[str, tuple[float, float]]]) -> None:
        """Signal and noise, by part of the model, of the last updates up to where the run stands."""
        for before, parts in zip(range(len(updates) - 1, -1, -1), updates, strict=True):
            update = self._clock.updates - before
            self._open(self._clock).noise(Clock(update * self._recipe.batch.global_batch, update), parts)

    def checked(self, score: float) -> float:
        """A score, once it can be one of this metric.

        Raises:
            RunFailed: If a share of samples is above 1, which is then one in per cent.
        """
        try:
            self._metric.check_share(score)
        except UserError as error:
            raise RunFailed(str(error)) from None
        return score

    def end(self, *, diverged: Diverged | None = None) -> Result:
        """The result, written into the folder if there is one."""
        updates, samples = self._recipe.num_updates, self._recipe.total_samples
        if diverged is not None or self.reached:
            ended = (diverged.update if diverged is not None else None) or self._clock.updates or updates
            updates, samples = ended, min(samples, ended * self._recipe.batch.global_batch)
        record, seconds = self._open(Clock(samples + 1, updates + 1)), self._seconds
        result = Result(
            self._name,
            updates=updates,
            samples=samples,
            test_score=self.test if diverged is None else math.nan,
            validation_score=self.validation,
            best_validation_score=self.best,
            train_s=seconds,
            samples_per_s=samples / seconds,
            reached=self.reached,
            diverged=diverged is not None,
        )
        if math.isfinite(self.test):
            record.score(Clock(samples, updates), "test", self.test, seconds=seconds)
        record.close()
        store_result(result, self._request.out, why=diverged)
        return result

    def close(self) -> None:
        """Close the files of a run that did not end."""
        if self._opened is not None:
            self._opened.close()

    def _clock_at(self, updates: float | None, samples: float | None, epochs: float | None) -> Clock:
        batch = self._recipe.batch.global_batch
        given = [value for value in (updates, samples, epochs) if value is not None]
        if len(given) != 1 or not math.isfinite(given[0]) or given[0] < 0:
            raise RunFailed(
                f"updates = {updates}, samples = {samples}, epochs = {epochs}: give exactly one, not negative, to say where the run stands"
            )
        if updates is not None:
            return Clock(round(updates * batch), round(updates))
        total = round(samples if samples is not None else (epochs or 0) * self._recipe.num_train_samples)
        return Clock(total, -(-total // batch))


def _earlier_lines(folder: Path | None) -> list[dict[str, Any]]:
    """What an earlier attempt told that left files to go on from; nothing where it left none."""
    if folder is None or not (folder / "record.jsonl").exists() or not any(any((folder / name).glob("*")) for name in OWN_FILES):
        return []
    return read_record_lines(folder / "record.jsonl").values


def _number(what: str, value: Any) -> float | None:
    """A number as Python's own, such as that of a tensor with one element.

    Raises:
        RunFailed: If it is none.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):
            raise TypeError("a text")
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise RunFailed(f"{what} = {value!r:.60}: must be a number") from None


def store_result(result: Result, out: Path | None, *, why: Diverged | None = None) -> None:
    """Leave a result in its run's folder, and why it has diverged in `diverged.txt`."""
    if out is not None:
        write_atomically(out / "result.json", result.to_json().encode())
        if why is not None:
            write_atomically(out / "diverged.txt", f"{why}\n".encode())


def open_run(recipe: Recipe, request: Request, identity: dict[str, Any]) -> Result | None:
    """Open a run's folder for a runner of this identity; the result of a finished run in it, None if there is none.

    Raises:
        CheckpointError: If the folder holds a finished run of another recipe, function or command, or what an unfinished one of another
            has left to go on from.
        OutputError: If it can't be written.
    """
    if request.out is None:
        return None
    folder = make_folder(request.out)
    remove_leftovers(folder)
    path = folder / RUNNER
    known = read_json(path, "choose another --out") if path.exists() else identity
    changed = [name for name in identity if known.get(name) != identity[name]]
    differing = [f"{name} ({_unlike(known.get(name), identity[name])})" for name in changed]
    is_finished = (folder / "result.json").exists()
    if differing and is_finished:
        raise CheckpointError(f"{folder}: holds a run of another {differing[0]}; choose another --out")
    if not is_finished and any(any((folder / name).glob("*")) for name in OWN_FILES):
        if fields := _differences(folder, recipe):
            differing.append(f"recipe ({'; '.join(fields)})")
        if differing:
            raise CheckpointError(
                f"{folder}: holds files of an unfinished run of another {differing[0]}, from which this one would go on; remove the "
                "folder, or choose another --out"
            )
    finished = finished_result(folder, recipe)
    if finished is None:
        write_atomically(path, f"{json.dumps(identity, indent=1)}\n".encode())
    return finished


def _unlike(there: Any, here: Any) -> str:
    """Where two identities differ: of mappings the first field."""
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(name for name in (*here, *there) if here.get(name) != there.get(name))
        return f"{name}: {there.get(name)!r:.120} there, {here.get(name)!r:.120} here"
    return f"{there!r:.120} there, {here!r:.120} here"


def _differences(folder: Path, recipe: Recipe) -> list[str]:
    """Fields in which a recipe differs from the one in a folder; none where that can't be read."""
    with suppress(RecipeError):
        return recipe.differences(Recipe.load(folder / "recipe.toml", saved=True))
    return []


@contextmanager
def held(request: Request) -> Iterator[None]:
    """Hold a run's folder while it runs, so that others see that it does."""
    with owned(request.out) if request.out is not None else nullcontext():
        yield


def required_folder(request: Request, what: str) -> Path:
    """The folder of a run that can't do without.

    Raises:
        UserError: If there is none.
    """
    if request.out is None:
        raise UserError(f"out = None: {what} needs a folder for its files; give one")
    return request.out
