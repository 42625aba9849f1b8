"""Grid search of recipe fields on validation data. The test set plays no part."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigbatch.core.checks import Diverged
from bigbatch.core.files import make_folder
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.loop import fit
from bigbatch.train.record import read_record


def grid(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the choices.

    >>> grid({"optimizer.lr": [0.1, 0.2], "seed": [0]})
    [{'optimizer.lr': 0.1, 'seed': 0}, {'optimizer.lr': 0.2, 'seed': 0}]
    """
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def search(task: Task, recipe: Recipe, choices: Mapping[str, Sequence[Any]], *, out: Path) -> list[dict[str, Any]]:
    """Run every combination that `out/trials.jsonl` does not hold yet.

    Args:
        task: What to train.
        recipe: Where the other fields come from.
        choices: Dotted field to the values to try.
        out: Folder of the study; one line is appended per finished trial, so a search can be stopped and continued.

    Returns:
        All trials of the grid, the best validation score first; a diverged one scores 0.
    """
    path = make_folder(out) / "trials.jsonl"
    done = {json.dumps(line["settings"], sort_keys=True): line for line in read_record(path)}
    combinations = grid(choices)
    for settings in combinations:
        key = json.dumps(settings, sort_keys=True)
        if key in done:
            continue
        try:
            result = fit(task, recipe.replace(settings), quiet=True, tensorboard=False, measure_test=False)
            facts: dict[str, Any] = {
                "validation_score": result.validation_score,
                "updates": result.updates,
                "train_s": round(result.train_s, 2),
            }
        except Diverged as error:
            facts = {"validation_score": 0.0, "diverged": str(error)}
        done[key] = {"settings": settings, **facts}
        with path.open("a") as file:
            file.write(json.dumps(done[key]) + "\n")
    trials = [done[json.dumps(settings, sort_keys=True)] for settings in combinations]
    return sorted(trials, key=lambda trial: -float(trial["validation_score"]))
