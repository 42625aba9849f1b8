"""All runs below a folder, read from whatever `bigbatch train`, `scale`, `noise` and `critical` left there: one row each.

A run is a folder with a record, a result or a checkpoint, or a line of `runs.jsonl`, where studies write the runs that they keep no folder
of. Nothing is written, no weights are read, and no file is too damaged: what can't be read is said in its run's row.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bigbatch.core.checks import InputError, UserError
from bigbatch.core.metric import ACCURACY, Metric, metric_of
from bigbatch.core.storage.folder_lock import is_held
from bigbatch.core.storage.json_lines import read_lines
from bigbatch.core.storage.reading import exists, first_mistake
from bigbatch.core.storage.saved import SavedProgress, saved_progress
from bigbatch.recipe import Recipe
from bigbatch.study.all_runs.table import UNKNOWN, RunRow, RunsTable, printable
from bigbatch.tasks.task import SHIPPED, load_task
from bigbatch.train.state.file_names import RUNNER
from bigbatch.train.state.record_lines import check_line, read_record_lines
from bigbatch.train.state.result import Result

TRIALS = "runs.jsonl"
OURS = ("record.jsonl", "result.json", "last.pt", "recipe.toml", "failed.txt")
Read = TypeVar("Read")


def runs(folder: str | Path) -> RunsTable:
    """The runs below a folder, at any depth, in the order of their paths.

    Hidden folders (`.git`, `.venv`) are left out, and links to folders are not followed.

    Args:
        folder: Such as `runs`, or one run's own.

    Returns:
        The runs; none is left out because it is damaged.

    Raises:
        UserError: If there is no such folder.
    """
    root = Path(folder)
    if not exists(root) or not root.is_dir():
        raise InputError(f"{root}: is not a folder; give one with runs in it, such as the --out of `bigbatch train` or `scale`")
    rows: list[RunRow] = []
    studies = set[str]()  # folders of runs that a line of a study's file stands for
    unreadable: list[str] = []
    for place, below, names in os.walk(root, onerror=lambda error: unreadable.append(printable(error.filename))):
        below[:] = [name for name in below if not name.startswith(".")]
        where, files = Path(place), {name for name in names if name in (*OURS, TRIALS) and _is_file(Path(place, name))}
        path = printable(os.path.relpath(where, root))
        if (row := _run_of(where, path, files)) is not None:
            rows.append(row)
        if TRIALS in files:
            rows += _trials_of(where / TRIALS, TRIALS if path == "." else f"{path}/{TRIALS}")
        studies.update([f"{path}/runs/"] if TRIALS in files else [])
    rows = [
        row
        for row in rows
        if row.state not in ("finished", "diverged") or not any(row.path.startswith(s.removeprefix("./")) for s in studies)
    ]
    return RunsTable(printable(str(root)), tuple(sorted(rows, key=lambda row: natural(row.path))), tuple(sorted(unreadable)))


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which numbers in names are in order.

    >>> sorted(["seed-10", "seed-9"], key=natural)
    ['seed-9', 'seed-10']
    """
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


class _Files:
    """A run's folder, and what of it could not be read."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self._folder, self._names, self.damage = folder, names, list[str]()

    def read(self, name: str, reader: Callable[[Path], Read]) -> Read | None:
        """A file; None where there is none, or it is damaged, which is noted."""
        if name not in self._names:
            return None
        try:
            return reader(self._folder / name)
        except UserError as error:
            self.damage.append(str(error))
            return None


class _Recorded(NamedTuple):
    """What a record says of its run."""

    start: Mapping[str, Any]  # its first line; empty if that is lost
    updates: int | None
    diverged: bool
    evaluations: Mapping[str, float]  # the newest score of each split

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> "_Recorded":
        updates = [line["update"] for line in lines if line["kind"] in ("update", "lost", "diverged")]
        scores = {line["split"]: float(line["score"]) for line in lines if line["kind"] == "evaluation"}
        start = next((line for line in lines if line["kind"] == "start"), {})
        return cls(start, max(updates, default=None), any(line["kind"] == "diverged" for line in lines), scores)


NOTHING = _Recorded.of([])


def _run_of(folder: Path, path: str, names: set[str]) -> RunRow | None:
    """The run in a folder; None if there is none."""
    if not names & {"record.jsonl", "result.json", "last.pt"}:
        return None
    files = _Files(folder, names)
    result = files.read("result.json", Result.load)
    recipe = files.read("recipe.toml", lambda path: Recipe.load(path, saved=True))
    progress = files.read("last.pt", _progress_of)
    is_told = result is not None and not result.diverged and recipe is not None  # what the record would say
    recorded = None if is_told else files.read("record.jsonl", _record_of(files))
    if len(names & set(OURS)) == 1 and result is None and progress is None and recorded in (None, NOTHING):
        return None  # another program's
    recorded = recorded or NOTHING
    if recipe is None and "recipe" in recorded.start:
        recipe = files.read("record.jsonl", lambda path: _recipe_in(path, recorded.start))
    state = _state(folder, result, recorded)
    if state == "stopped" and "failed.txt" in names:
        state = "failed"
    if state == "stopped" and progress is None and not files.damage and not exists(folder / RUNNER):
        files.damage.append(f"{folder}: holds no checkpoint (last.pt) to resume from; start the run again in another --out")
    if recipe is None and not files.damage:
        files.damage.append(f"{folder}: holds no recipe (recipe.toml, record.jsonl)")
    task = result.task if result is not None else recorded.start.get("task", recipe.task if recipe is not None else "")
    return RunRow(
        path,
        "damaged" if files.damage and state != "running" else state,
        "; ".join(printable(why) for why in files.damage),
        task=task,
        metric=_metric_of(task, recorded.start or _first_line(folder / "record.jsonl")),
        fields=recipe.to_flat_dict() if recipe is not None else {},
        **_measured(state, result, progress, recorded),
    )


def _metric_of(task: str, start: Mapping[str, Any]) -> Metric:
    """The one that a record names; of a shipped task accuracy, where it names none. Only for a run without a record a task is imported."""
    if "metric" in start or task not in SHIPPED:
        return metric_of(start.get("metric", UNKNOWN))
    return ACCURACY if start else _of_shipped(task)


@cache
def _of_shipped(task: str) -> Metric:
    return metric_of(load_task(task).metric)


def _first_line(path: Path) -> Mapping[str, Any]:
    """That of a record which need not be read; empty if there is none."""
    try:
        with path.open("rb") as file:
            line: Any = json.loads(file.readline(2**20))
        check_line(line)
    except (OSError, ValueError, AttributeError):
        return {}
    return line if line["kind"] == "start" else {}


def _state(folder: Path, result: Result | None, recorded: _Recorded) -> str:
    if result is not None:
        return "diverged" if result.diverged else "finished"
    if is_held(folder):
        return "running"
    return "diverged" if recorded.diverged else "stopped"


def _measured(state: str, result: Result | None, progress: SavedProgress | None, recorded: _Recorded) -> dict[str, Any]:
    """Score, updates and seconds: of a stopped run those of its checkpoint, of a running or diverged one the record's, without seconds."""
    if state == "finished" and result is not None:
        scores = {"test": result.test_score, "validation": result.validation_score}
        return {**_score(scores), "updates": result.updates, "seconds": number(result.train_s)}
    scores = dict(recorded.evaluations)
    if state == "stopped" and progress is not None:
        return {**_score(scores), "updates": progress.updates, "seconds": number(progress.train_s)}
    updates = recorded.updates if recorded.updates is not None else progress.updates if progress is not None else None
    return {**_score(scores), "updates": updates, "seconds": None}


def _score(scores: Mapping[str, float | None]) -> dict[str, Any]:
    """The test score, or the newest of validation where the test set was not used."""
    for split in ("test", "validation"):
        if (score := number(scores.get(split))) is not None:
            return {"score": score, "split": split}
    return {"score": None, "split": ""}


def number(value: float | None) -> float | None:
    """A finite number, or None."""
    return value if value is not None and math.isfinite(value) else None


def _progress_of(path: Path) -> SavedProgress:
    progress = saved_progress(path)
    if progress is None:
        raise InputError(f"checkpoint {path}: is truncated or damaged; resume from a copy or start a new run")
    return progress


def _record_of(files: _Files) -> Callable[[Path], _Recorded]:
    def read(path: Path) -> _Recorded:
        lines = read_record_lines(path)
        if lines.damaged:
            files.damage.append(f"{path}: {lines.loss()}")
        return _Recorded.of(lines.values)

    return read


def _recipe_in(path: Path, start: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.from_saved(start["recipe"])
    except UserError as error:
        raise InputError(f"{path}: {error}") from None


def _is_file(path: Path) -> bool:
    """Whether it is a file that can be read to its end: no folder, pipe or device."""
    try:
        return path.is_file()
    except OSError:
        return False


class _Trial(BaseModel):
    """A run as a study stores it in a line: `critical`, or a grid."""

    model_config = ConfigDict(strict=True, extra="ignore")
    recipe: dict[str, Any]
    diverged: bool
    updates: int | None
    train_s: float | None
    test_score: float | None = None
    validation_score: float | None = None
    best_score: float | None = None  # of validation
    metric: Any = UNKNOWN


def _trials_of(path: Path, shown: str) -> Iterator[RunRow]:
    """The runs in a study's file; none if no line of it is a run."""
    try:
        lines = read_lines(path, dict)
    except InputError as error:
        yield RunRow(shown, "damaged", printable(str(error)))
        return
    rows = [_trial(line.number, line.value, path, shown) for line in lines.good]
    if any(row.state != "damaged" for row in rows) or exists(path.with_name("critical.json")):
        yield from rows
        for line, why in lines.damaged:
            yield RunRow(f"{shown}:{line}", "damaged", printable(f"{path}, line {line}: {why}"))


def _trial(line: int, stored: Mapping[str, Any], path: Path, shown: str) -> RunRow:
    try:
        trial = _Trial.model_validate_json(json.dumps(stored))
        recipe = Recipe.from_saved(trial.recipe)
    except (ValidationError, UserError) as error:
        why = first_mistake(error) if isinstance(error, ValidationError) else str(error)
        return RunRow(f"{shown}:{line}", "damaged", printable(f"{path}, line {line}: {why}"))
    validation = trial.validation_score if trial.validation_score is not None else trial.best_score
    scores = _score({} if trial.diverged else {"test": trial.test_score, "validation": validation})
    measured = {**scores, "updates": trial.updates, "seconds": number(trial.train_s)}
    return RunRow(
        f"{shown}:{line}",
        "diverged" if trial.diverged else "finished",
        task=recipe.task,
        fields=recipe.to_flat_dict(),
        metric=_metric_of(recipe.task, {"metric": trial.metric}),
        **measured,
    )
