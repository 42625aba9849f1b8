"""Grid search of recipe fields on validation data. The test set plays no part."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import Diverged
from bigbatch.core.folder_lock import owned
from bigbatch.core.json_lines import append_line, stored_lines
from bigbatch.core.metric import metric_of
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.trainer import fit


class Trial(NamedTuple):
    """One combination of settings over the seeds."""

    settings: dict[str, Any]
    mean: float  # validation score of the final weights; a diverged run counts the worst score, 0 of accuracy
    scores: tuple[float, ...]


def grid(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the choices.

    >>> grid({"optimizer.lr": [0.1, 0.2], "optimizer.momentum": [0.9]})
    [{'optimizer.lr': 0.1, 'optimizer.momentum': 0.9}, {'optimizer.lr': 0.2, 'optimizer.momentum': 0.9}]
    """
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _identity(line: Mapping[str, Any]) -> str:
    """What a line is of.

    Raises:
        ValueError: If it holds no score.
    """
    if line["validation_score"] is not None:
        float(line["validation_score"])
    return json.dumps([line["settings"], line["seed"]], sort_keys=True)


def search(task: Task, recipe: Recipe, choices: Mapping[str, Sequence[Any]], *, seeds: Sequence[int], out: Path) -> list[Trial]:
    """Run every combination and seed that `out/trials.jsonl` does not hold yet.

    Args:
        task: What to train.
        recipe: Where the other fields come from.
        choices: Dotted field to the values to try.
        seeds: Each combination is run once per seed.
        out: Folder of the study; one line is appended per finished run, so a search can be stopped and continued.

    Returns:
        The trials of the grid, the best mean validation score first.
    """
    metric = metric_of(task.metric)
    with owned(out) as folder:
        path = folder / "trials.jsonl"
        done = {_identity(line): line for line in stored_lines(path, _identity)}
        trials = []
        for settings in grid(choices):
            scores = []
            for seed in seeds:
                key = json.dumps([settings, seed], sort_keys=True)
                if key not in done:
                    done[key] = _run(task, recipe.replace({**settings, "seed": seed}), settings, seed)
                    append_line(path, done[key])
                score = done[key]["validation_score"]
                scores.append(metric.of_diverged if score is None else float(score))
            trials.append(Trial(settings, statistics.fmean(scores), tuple(scores)))
    return sorted(trials, key=lambda trial: metric.rank(trial.mean))


def _run(task: Task, recipe: Recipe, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    line: dict[str, Any] = {"settings": settings, "seed": seed}
    try:
        result = fit(task, recipe, quiet=True, tensorboard=False, measure_test=False)
    except Diverged as error:
        return {**line, "validation_score": _finite(metric_of(task.metric).of_diverged), "diverged": str(error)}
    score = _finite(result.validation_score)
    return {**line, "validation_score": score, "updates": result.updates, "train_s": round(result.train_s, 2)}


def _finite(score: float) -> float | None:
    """JSON has no other numbers."""
    return score if math.isfinite(score) else None
