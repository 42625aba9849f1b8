"""A command as a way to run a recipe: any training script, as it is."""

import json
import math
import os
import re
import sys
import warnings
from collections import deque
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigbatch.core.checks import Diverged, Interrupted, RunFailed, UserError, unknown
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.storage.reading import first_mistake
from bigbatch.core.storage.writing import write_atomically
from bigbatch.recipe import Recipe
from bigbatch.runner.fields import allows, check_words, files_by_updates
from bigbatch.runner.log import OUTPUT, RunLog, TargetReached, held, open_run, required_folder
from bigbatch.runner.process import Ended, run_process
from bigbatch.runner.protocol import NO_CONSTANT, Request, Split
from bigbatch.runner.score_sources import UNITS, JSONFile, Pattern, ScoreSource, TensorBoard, compiled
from bigbatch.runner.template import Template
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result

LAST_LINES = 20
NOT_A_NUMBER = re.compile(r"(?i)(?<![a-z0-9_])[-+]?(nan|inf|infinity)(?![a-z0-9_])")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ScoreFile(_Section):
    """A score in a JSON file, or a file of JSON lines."""

    file: str  # may have fields, such as "{out}/result.json"
    key: str  # dots go deeper
    updates: str | None = None  # key of where the run stood, in one of the three units
    samples: str | None = None
    epochs: str | None = None


class ScoreEvents(_Section):
    """A score in TensorBoard's events."""

    tensorboard: str  # folder; may have fields
    tag: str
    step: Literal["updates", "samples", "epochs"] = "updates"  # what the steps are


Score = str | ScoreFile | ScoreEvents
"""Where a value is: a regular expression over standard output, a file, or events."""


class CommandSection(_Section):
    """The `[command]` section of a settings file."""

    run: str | Annotated[list[str], Field(min_length=1)]  # see bigbatch.runner.template
    score: Score  # of the test set: the last one counts
    curve: Score | None = None  # validation scores on the way
    metric: Any  # name, unit, better, margin, relative, scale
    can: list[str] | None = None  # what of a recipe the script follows; what the command has fields for, if left out
    environment: dict[str, str] = Field(default_factory=dict)  # added to the caller's
    folder: str | None = None  # working folder; the settings file's own if left out
    time_limit_s: Annotated[float, Field(gt=0)] | None = None
    retries: Annotated[int, Field(ge=0)] = 1  # of a run that fails
    checkpoint: str | None = None  # of the script's checkpoints below {out}, such as "step-{updates}.pt": what branches begin from
    diverged: str | None = None  # a regular expression: a line that matches it means that the run has diverged
    shell: bool = False  # whether /bin/sh reads the command
    device_batch: Annotated[int, Field(gt=0)] | None = None  # for {accumulation}
    num_test_samples: Annotated[int, Field(gt=0)] | None = None  # that the score is the mean over


def _mistake(error: ValidationError) -> str:
    """The first thing that is wrong; of a source of scores what is wrong with the one that was meant."""
    place, value = error.errors()[0]["loc"], error.errors()[0]["input"]
    if error.errors()[0]["type"] == "extra_forbidden":
        return unknown("field", str(place[-1]), CommandSection.model_fields)
    if place[0] in ("score", "curve") and isinstance(value, dict):
        meant = ScoreEvents if "tensorboard" in value else ScoreFile
        if strange := [name for name in value if name not in meant.model_fields]:
            return f"{place[0]}: {unknown('field', strange[0], meant.model_fields)}"
        missing = [name for name, field in meant.model_fields.items() if field.is_required() and name not in value]
        return f"{place[0]}: no {missing[0]}" if missing else first_mistake(error)
    return first_mistake(error)


class NoScore(RunFailed):
    """A command ended well and told no score: it would do so again."""


class CommandRunner:
    """Runs recipes by a command.

    Args:
        section: The command's settings, as a `CommandSection` or a mapping.
        name: Of what is trained.
        base: Folder that relative paths start from; the current one if left out.

    Raises:
        UserError: If a setting is wrong, the template or the pattern can't be read, or the metric has no direction.
    """

    in_process = False
    wants_folder = True

    def __init__(self, section: Any, *, name: str = "command", base: Path | None = None) -> None:
        if not isinstance(section, CommandSection):
            try:
                section = CommandSection.model_validate(section)
            except ValidationError as error:
                raise UserError(f"[command] {_mistake(error)}") from None
        self.name, self._section = name, section
        self._metric = _metric(section.metric)
        self._folder = (base or Path.cwd()) / (section.folder or "")
        self._template = Template(section.run, device_batch=section.device_batch, shell=section.shell)
        check_words(section.can or [])
        if isinstance(section.score, str):
            compiled(section.score)
        if section.curve is not None:
            _check_curve(section.curve)
        self._diverged = compiled(section.diverged, what="diverged") if section.diverged is not None else None
        self.num_test_samples = section.num_test_samples
        told = {"run": section.run, "score": section.score, "curve": section.curve, "shell": section.shell}
        self.identity = {"command": json.loads(json.dumps(told, default=lambda part: part.model_dump(exclude_none=True)))}

    @property
    def metric(self) -> Metric:
        """As it was stated."""
        return self._metric

    def can_change(self, field: str) -> bool:
        """Whether the command has a place for a field, and the script follows it."""
        can = self._section.can
        return self._template.has_place_for(field) and (can is None or allows(can, field))

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that does not fill the template, or a working folder that is not there; warn of runs that are all alike."""
        self._template.check(recipe)
        if not self._template.has_place_for("seed"):
            warnings.warn(
                "command: has no {seed}: unless it draws one itself, all runs of an arm are the same; add it, such as --seed {seed}",
                stacklevel=2,
            )
        factor = recipe.get("schedule.warmup.start_factor")
        if factor and not {"recipe", "schedule.warmup.start_factor"} & set(self._template.fields):
            warnings.warn(
                f"command: has no place for schedule.warmup.start_factor = {factor:.3g}: unless the script's warm-up begins there, it "
                "follows another schedule; add {schedule.warmup.start_factor}, or choose a rule that begins at zero, such as --rule legw",
                stacklevel=2,
            )
        if not self._folder.is_dir():
            raise UserError(f"command: folder {self._folder}: is not there; correct `folder`")

    def prepare(self, recipe: Recipe) -> None:
        """There is nothing to measure."""

    def checkpoints(self, folder: Path) -> dict[int, Path]:
        """By `checkpoint` of the settings, below the run's {out}.

        Raises:
            UserError: If it is not stated, or the command can't begin from one.
        """
        if self._section.checkpoint is None or "start" not in self._template.fields:
            raise UserError(
                'command: does not say where its checkpoints are, or can\'t begin from one; state checkpoint = "step-{updates}.pt", a path '
                "below {out}, and give the script {start}, which is empty in a run that begins anew"
            )
        return files_by_updates((folder / OUTPUT).absolute(), self._section.checkpoint)

    def constant_prediction(self, recipe: Recipe, *, split: Split = "test") -> ConstantPrediction:  # noqa: ARG002
        """There is none: the command's predictions and data are its own."""
        raise UserError(NO_CONSTANT.format(what="a command"))

    def run(self, recipe: Recipe, request: Request) -> Result:
        """As `Runner.run`; a run that fails is made again `retries` times. What it left in its own folder is there again then."""
        folder = required_folder(request, "a command")
        if (finished := open_run(recipe, request, self.identity)) is not None:
            return finished
        self._check_target(request)
        for attempt in range(self._section.retries + 1):
            try:
                with held(request):
                    return self._run_once(recipe, request, folder)
            except RunFailed as error:
                failure = error
                write_atomically(folder / "failed.txt", f"attempt {attempt + 1}: {error}\n".encode())
                if isinstance(error, NoScore):
                    break
        again = f" (tried {attempt + 1} times)" if attempt else ""
        raise RunFailed(f"{request.title or self.name}: {failure}{again}")

    def _check_target(self, request: Request) -> None:
        if request.target is not None and self._section.curve is None:
            raise UserError(
                "command: a target needs validation scores on the way; state `curve`, such as "
                "'step (?P<updates>[0-9]+) .* val loss (?P<score>[0-9.]+)'"
            )

    def _run_once(self, recipe: Recipe, request: Request, folder: Path) -> Result:
        own = (folder / OUTPUT).absolute()
        own.mkdir(exist_ok=True)
        for name in ("stdout.txt", "stderr.txt"):
            (folder / name).unlink(missing_ok=True)
        log = RunLog(self.name, recipe, request, self._metric)
        watch = _Watch(self._source(self._section.score, recipe, own), self._source(self._section.curve, recipe, own), log, self._diverged)
        recipe_file = str((folder / "recipe.toml").absolute())
        start = str(request.start.absolute()) if request.start is not None else ""
        arguments = self._template.fill(recipe, out=str(own), recipe_file=recipe_file, start=start)
        environment = _environment(request, self._section.environment)
        try:
            with interruptible(request.out) as signalled:
                ended = run_process(
                    arguments,
                    folder=folder,
                    cwd=self._folder,
                    environment=environment,
                    shell=self._section.shell,
                    time_limit_s=self._section.time_limit_s,
                    on_line=watch.on_line,
                    poll=watch.poll,
                    asked=lambda: signalled.is_set() or (request.stop is not None and request.stop.is_set()),
                )
            watch.poll()
            if ended.stopped == "asked":
                raise Interrupted(f"stopped in {request.title or self.name}; the same command makes this run again")
            if (diverged := watch.diverged_at_its_end(ended)) is not None:
                return log.end(diverged=diverged)
            if not log.reached:
                self._check_end(ended, log, watch, folder, request)
            return log.end()
        finally:
            log.close()

    def _source(self, score: Score | None, recipe: Recipe, own: Path) -> ScoreSource | None:
        if score is None:
            return None
        if isinstance(score, str):
            return Pattern(compiled(score))
        text = score.file if isinstance(score, ScoreFile) else score.tensorboard
        (path,) = Template([text]).fill(recipe, out=str(own), recipe_file="")
        if isinstance(score, ScoreFile):
            keys = {"updates": score.updates, "samples": score.samples, "epochs": score.epochs}
            return JSONFile(self._folder / path, score.key, position={unit: key for unit, key in keys.items() if key is not None})
        return TensorBoard(self._folder / path, score.tag, unit=score.step)

    def _check_end(self, ended: Ended, log: RunLog, watch: "_Watch", folder: Path, request: Request) -> None:
        where = f"its output is in {folder}"
        if ended.stopped == "time":
            raise RunFailed(f"command: ran longer than time_limit_s = {self._section.time_limit_s:g}, and was stopped; {where}")
        if ended.code != 0:
            how = f"ended with exit code {ended.code}" if ended.code > 0 else f"was ended by signal {-ended.code}"
            raise RunFailed(f"command: {how}: {_last_line(folder)}; {where}")
        if request.measure_test and not math.isfinite(log.test):
            raise NoScore(
                f"command: ended well and told no score: nothing was found in {watch.score.what}; its last line was "
                f"{_last_line(folder)!r}; {where}"
            )


class _Watch:
    """Reads scores while a command runs."""

    def __init__(self, score: ScoreSource | None, curve: ScoreSource | None, log: RunLog, diverged: "re.Pattern[str] | None") -> None:
        assert score is not None
        self.score, self._curve, self._log, self._pattern = score, curve, log, diverged
        self._diverged: Diverged | None = None
        self._failure: RunFailed | None = None
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    def on_line(self, line: str) -> None:
        """Take a line of standard output; in another thread, so that failures are kept for `poll`."""
        self._last.append(line)
        try:
            for source in (self.score, self._curve):
                if source is not None:
                    source.on_line(line)
        except RunFailed as error:
            self._failure = error
        if self._pattern is not None and self._pattern.search(line):
            self._diverged = self._diverged or Diverged(f"its output says so: {line.strip()[:200]}")

    def poll(self) -> bool:
        """Take what is new; True when nothing more is wanted of the run."""
        if self._failure is not None:
            raise self._failure
        try:
            for reading in self._curve.news() if self._curve is not None and not self._log.reached else ():
                self._log.log(**reading.position, loss=reading.loss, score=reading.value)
            for reading in self.score.news():
                self._log.score(reading.value)
        except TargetReached:
            return True
        except Diverged as error:
            self._diverged = self._diverged or error
        return self._diverged is not None

    def diverged_at_its_end(self, ended: Ended) -> Diverged | None:
        """Why the run counts as diverged; None if it does not.

        Without a score, a last output that has NaN or infinity in it counts, however the program ended.
        """
        has_score = math.isfinite(self._log.test) or (not self._log.wants_test and math.isfinite(self._log.validation))
        if self._diverged is None and not ended.stopped and not has_score and not self._log.reached:
            line = next((line for line in reversed(self._last) if NOT_A_NUMBER.search(line)), None)
            if line is not None and ended.code == 0:
                return Diverged(f"no score, and its output has a number that is not finite: {line.strip()[:200]}")
        return self._diverged


def _metric(stated: Any) -> Metric:
    if isinstance(stated, dict) and stated.get("better") not in ("higher", "lower"):
        raise UserError(f'metric {stated.get("name", "")}: better = {stated.get("better")!r}: must be "higher" or "lower"; state it')
    if isinstance(stated, dict) and "margin" not in stated:
        raise UserError(f"metric {stated.get('name', '')}: states no margin: how much may be lost without calling it a loss, in its unit")
    return metric_of(stated)


def _check_curve(curve: Score) -> None:
    """Refuse a curve that says no positions."""
    if isinstance(curve, str) and not {*UNITS, "epoch", "epoch0"} & set(compiled(curve).groupindex):
        raise UserError(
            f"command: curve = {curve!r:.120}: says no positions; name a group updates, samples, epoch (finished) or epoch0 (from 0)"
        )
    if isinstance(curve, ScoreFile) and not (curve.updates or curve.samples or curve.epochs):
        raise UserError(f'command: curve of {curve.file!r}: says no positions; state the key of one, such as updates = "step"')


def _environment(request: Request, own: dict[str, str]) -> dict[str, str]:
    """Variables of a command's processes. Where no environment is active, `python` is the one that runs bigbatch."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(request.environment)}
    if "VIRTUAL_ENV" not in os.environ and "CONDA_PREFIX" not in os.environ:
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**environment, **own}


def _last_line(folder: Path) -> str:
    for name in ("stderr.txt", "stdout.txt"):
        path = folder / name
        if path.exists() and (lines := [line for line in _tail(path).splitlines() if line.strip()]):
            return lines[-1].strip()[:200]
    return "it printed nothing"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return file.read().decode("utf-8", "replace")
