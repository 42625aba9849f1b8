"""Many recipes over seeds, one line of JSON a finished run: stopped at any moment, it goes on where it was."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bigbatch.core.environment import own_rank
from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.core.storage.json_lines import append_line, stored_lines
from bigbatch.core.storage.writing import make_folder
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import TaskRunner
from bigbatch.study.comparison.noninferiority import Verdict, noninferiority
from bigbatch.tasks.task import Task
from bigbatch.train.state.record_lines import read_record


class Cell(NamedTuple):
    """One entry of the grid: a name to find it by, and what to run."""

    key: Mapping[str, Any]  # such as {"method": "muon", "multiple": 64}
    recipe: Recipe


def run_grid(
    task: Task,
    cells: Iterable[Cell],
    *,
    seeds: Sequence[int],
    path: Path,
    facts: Mapping[str, Any],
    measure_test: bool = True,
    measure_distance: bool = False,
    runner: Runner | None = None,
) -> list[dict[str, Any]]:
    """Run every cell and seed that the file does not hold yet; the test set is used once a run, with the final weights.

    Started by torchrun, workers run each cell together, and the first writes.

    Args:
        task: What to train.
        cells: Run in this order.
        seeds: Each cell is run once per seed.
        path: JSON lines; appended to after each run. A line stands for a run only if its recipe is the cell's.
        facts: Written into each new line (commit, machine).
        measure_test: Whether the test set is used at all; not in a search.
        measure_distance: Whether a line also gets the weights' distance from their start, as pairs of update and distance.

        runner: Runs the recipes, such as by several workers; the task's own if left out.

    Returns:
        The lines of the cells, in order.
    """
    make_folder(path.parent)
    first = own_rank() == 0
    done = {_stored_identity(line): line for line in stored_lines(path, _stored_identity, writes=first)}
    lines = []
    for cell in cells:
        for seed in seeds:
            recipe = cell.recipe.replace({"seed": seed})
            identity = _identity(cell.key, recipe.to_dict())
            if identity not in done:
                runs = runner or TaskRunner(task, tensorboard=False, measure_distance=measure_distance)
                run = _run(runs, recipe, measure_test, measure_distance)
                done[identity] = {"key": dict(cell.key), "seed": seed, **run, **facts, "recipe": recipe.to_dict()}
                if first:
                    append_line(path, done[identity])
            lines.append(done[identity])
    return lines


def verdict_of(
    lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *, margin: float, metric: Metric = ACCURACY
) -> Verdict:
    """The non-inferiority test of a cell's runs against the reference's that did not diverge; a cell with a diverged run is lost.

    `margin` is stated as the metric's: in points of accuracy.
    """
    if any(line["diverged"] for line in lines):
        return Verdict("lost", float("nan"), None, None)
    scores = [[metric.comparable(line["test_score"]) for line in arm if not line["diverged"]] for arm in (lines, reference)]
    if not scores[1]:
        return Verdict("undecided", float("nan"), None, None)
    return noninferiority(scores[0], scores[1], margin=metric.comparable_margin(margin))


def cell_text(
    lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *, margin: float, metric: Metric = ACCURACY
) -> str:
    """A cell of a table in Markdown: mean and spread in the metric's unit, the verdict against the reference, how many runs diverged.

    The reference itself has no verdict.
    """
    good = [metric.shown(line["test_score"]) for line in lines if not line["diverged"]]
    died = f" ({len(lines) - len(good)} of {len(lines)} diverged)" if len(good) < len(lines) else ""
    if not good:
        return f"-{died}"
    text = metric.number(statistics.fmean(good)) + (f" ± {metric.number(statistics.stdev(good))}" if len(good) > 1 else "")
    outcome = "lost" if lines is reference else verdict_of(lines, reference, margin=margin, metric=metric).outcome
    return {"held": f"**{text} held**", "undecided": f"{text} undecided", "lost": text}[outcome] + died


def _stored_identity(line: Mapping[str, Any]) -> str:
    """What a line is of; recipes are read anew: fields added since have their defaults.

    Raises:
        ValueError: If it is of no run.
    """
    if not isinstance(line["diverged"], bool):
        raise ValueError(f"diverged = {line['diverged']!r}: must be true or false")
    return _identity(line["key"], Recipe.from_saved(line["recipe"]).to_dict())


def _identity(key: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    return json.dumps([key, recipe], sort_keys=True)


def _run(runner: Runner, recipe: Recipe, measure_test: bool, measure_distance: bool) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run" if measure_distance else None
        result = runner.run(recipe, Request(out=out, evaluate_every=recipe.total_epochs, measure_test=measure_test))
        record = read_record(out / "record.jsonl") if out is not None and not result.diverged else []
    if result.diverged:
        return {"test_score": None, "validation_score": None, "updates": result.updates, "train_s": None, "diverged": True}
    walked = [(line["update"], line["distance"]) for line in record if line["kind"] == "weight_distance"]
    return {
        **({"weight_distance": walked} if measure_distance else {}),
        "test_score": result.test_score,
        "validation_score": result.validation_score,
        "updates": result.updates,
        "train_s": round(result.train_s, 2),
        "diverged": False,
    }
