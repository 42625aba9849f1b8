"""Grid search of recipe fields on validation data. The test set plays no part."""

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.metric import Metric
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.json_lines import append_line, stored_lines
from bigbatch.recipe import Recipe
from bigbatch.runner.jobs import Job, OneAfterAnother, Pool, run_jobs
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import runner_of
from bigbatch.tasks.task import Task
from bigbatch.train.state.result import Result


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
    return _key(line["settings"], line["seed"], line.get("recipe", ""))


def _key(settings: Mapping[str, Any], seed: int, recipe: str) -> str:
    return json.dumps([settings, seed, recipe], sort_keys=True)


def search(
    task: Task | Runner | Callable[..., Any] | str,
    recipe: Recipe,
    choices: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int],
    out: Path,
    pool: Pool | None = None,
) -> list[Trial]:
    """Run every combination and seed that `out/trials.jsonl` does not hold yet.

    Args:
        task: What to train: a task, its name, a function or another way to run recipes, as in `scale`.
        recipe: Where the other fields come from.
        choices: Dotted field to the values to try.
        seeds: Each combination is run once per seed.
        out: Folder of the study; one line is appended per finished run, so a search can be stopped and continued.
        pool: Makes the runs; one after another in this process if left out.

    Returns:
        The trials of the grid, the best mean validation score first.
    """
    runner = runner_of(task)
    metric = runner.metric
    with owned(out) as folder, pool or OneAfterAnother() as runs_of:
        path = folder / "trials.jsonl"
        done = {_identity(line): line for line in stored_lines(path, _identity)}
        rest = {name: value for name, value in recipe.to_flat_dict().items() if name != "seed" and name not in choices}
        others = _digest(json.dumps(rest, sort_keys=True))

        def found(settings: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
            """Lines of earlier versions do not say what the other fields were."""
            return done.get(_key(settings, seed, others)) or done.get(_key(settings, seed, ""))

        wanted: list[dict[str, Any]] = [
            {"settings": settings, "seed": seed, "recipe": others} for settings in grid(choices) for seed in seeds
        ]
        missing = [line for line in wanted if found(line["settings"], line["seed"]) is None]
        jobs = [_job(runner, recipe, line, folder) for line in missing]

        def ended(number: int, result: Result) -> None:
            line = {**missing[number], **_measured(result, metric)}
            done[_identity(line)] = line
            append_line(path, line)

        run_jobs(runs_of, runner, jobs, done=ended)
        trials = []
        for settings in grid(choices):
            told = [line["validation_score"] for seed in seeds if (line := found(settings, seed)) is not None]
            scores = [metric.of_diverged if score is None else float(score) for score in told]
            trials.append(Trial(settings, statistics.fmean(scores), tuple(scores)))
    return sorted(trials, key=lambda trial: metric.rank(trial.mean))


def _job(runner: Runner, recipe: Recipe, line: Mapping[str, Any], folder: Path) -> Job:
    chosen = recipe.replace({**line["settings"], "seed": line["seed"]})
    title = ", ".join(f"{name} {value}" for name, value in line["settings"].items()) + f", seed {line['seed']}"
    return Job(
        chosen, Request(out=folder / "runs" / _digest(chosen.to_toml()) if runner.wants_folder else None, title=title, measure_test=False)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _measured(result: Result, metric: Metric) -> dict[str, Any]:
    if result.diverged:
        return {"validation_score": _finite(metric.of_diverged), "diverged": f"after update {result.updates:,}"}
    return {"validation_score": _finite(result.validation_score), "updates": result.updates, "train_s": round(result.train_s, 2)}


def _finite(score: float) -> float | None:
    """JSON has no other numbers."""
    return score if math.isfinite(score) else None
