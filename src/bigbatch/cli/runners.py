"""What a study runs, from its options: a task, a function, a command, or a settings file; and where its runs are made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigbatch.cli.settings import Sets, apply_sets, find_recipe
from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe
    from bigbatch.runner.jobs import Pool
    from bigbatch.runner.protocol import Runner

What = Annotated[
    str | None,
    typer.Argument(
        metavar="[TASK]",
        help="A task of `bigbatch tasks`, your own as module:Class, a function as module:function, or a settings file (TOML).",
    ),
]
Command = Annotated[
    str | None,
    typer.Option("--command", help='Your script with fields of the recipe: "python train.py --lr {optimizer.lr} --seed {seed}".'),
]
Score = Annotated[
    str | None, typer.Option("--score", help="Where a command's score is: a regular expression, FILE:KEY of JSON, or tensorboard:DIR:TAG.")
]
Curve = Annotated[
    str | None, typer.Option("--curve", help="Its validation scores on the way: a regular expression with groups such as (?P<updates>...).")
]
MetricName = Annotated[str | None, typer.Option("--metric", metavar="NAME[,UNIT]", help="What its score is, such as 'loss,nats'.")]
Better = Annotated[str | None, typer.Option("--better", help="Which of its scores are better: higher or lower.")]
ParallelRuns = Annotated[int | None, typer.Option("--parallel", metavar="N", help="Runs at once on this machine.")]
On = Annotated[
    str | None, typer.Option("--on", metavar="ray[:ADDRESS]", help="Make the runs on a Ray cluster; a local one without address.")
]


def find_runner(
    what: str | None,
    recipe: Path | None,
    sets: Sets,
    *,
    data: Path | None,
    command: str | None,
    score: str | None,
    curve: str | None,
    metric: str | None,
    better: str | None,
    margin: float | None,
) -> tuple["Runner", "Recipe"]:
    """The way to run, and the reference recipe, with the `--set` options applied.

    Raises:
        UserError: If options are missing, or contradict each other.
    """
    from bigbatch.runner.command import CommandRunner
    from bigbatch.runner.settings_file import load_runner, load_settings

    of_command = {"--score": score, "--curve": curve, "--metric": metric, "--better": better}
    if command is None:
        if given := [name for name, value in of_command.items() if value is not None]:
            raise UserError(f"{given[0]}: is of a command; give --command too, or state it in the settings file")
        if what is None:
            raise UserError("TASK: is missing; give a task, module:function, a settings file, or --command")
        if what.endswith(".toml"):
            runner, chosen = load_settings(what, data=data)
            if recipe is not None:
                raise UserError(f"--recipe: {what} holds a recipe itself; leave one of them out")
            return runner, apply_sets(chosen, sets)
        return load_runner(what, data=data), find_recipe(what, recipe, sets)
    if what is not None:
        raise UserError(f"{what}: a task and --command are two ways to train; leave one of them out")
    if recipe is None:
        raise UserError("--command: needs --recipe FILE, the settings that your script was tuned at")
    if score is None or metric is None or better is None:
        raise UserError("--command: needs --score, --metric and --better: where the score is, what it is, and which scores are better")
    if margin is None:
        raise UserError("--command: needs --margin: how much may be lost without calling it a loss, in the metric's unit")
    name, _, unit = metric.partition(",")
    section: dict[str, Any] = {"run": command, "score": _source(score), "curve": _source(curve) if curve is not None else None}
    section["metric"] = {"name": name.strip(), "unit": unit.strip(), "better": better, "margin": margin}
    chosen = find_recipe("", recipe, sets)
    return CommandRunner(section, name=chosen.task or Path(command.split()[0]).stem), chosen


def find_pool(parallel: int | None, on: str | None) -> "Pool | None":
    """Where the runs are made; None for one after another here.

    Raises:
        UserError: If the place is unknown.
    """
    if on is None:
        if parallel is None:
            return None
        from bigbatch.runner.parallel import Parallel

        return Parallel(parallel)
    place, _, address = on.partition(":")
    if place != "ray":
        raise UserError(f"--on {on}: must be ray, or ray:ADDRESS such as ray:10.0.0.1:6379 or ray:auto")
    from bigbatch.runner.on_ray import OnRay

    return OnRay(address or None, at_once=parallel)


def label(what: str | None, runner: "Runner") -> str:
    """What is trained, in words: as it was given, unless that is a file."""
    return runner.name if what is None or what.endswith(".toml") else what


def folder_name(what: str | None, runner: "Runner") -> str:
    """A study's folder below runs/..., of what it trains."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label(what, runner)) or "command"


def _source(text: str) -> Any:
    """`FILE.json:KEY` and `tensorboard:DIR:TAG`, else a regular expression."""
    head, _, tail = text.rpartition(":")
    if text.startswith("tensorboard:"):
        _, folder, tag = text.split(":", 2) if text.count(":") >= 2 else ("", "", "")
        if not folder or not tag:
            raise UserError(f"--score {text}: must be tensorboard:FOLDER:TAG")
        return {"tensorboard": folder, "tag": tag}
    if head.endswith((".json", ".jsonl")):
        return {"file": head, "key": tail}
    return text
