"""What a study runs, from its options: a task, a function, a command, or a settings file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.cli.options.names import task_names
from bigbatch.cli.options.sets import apply_sets
from bigbatch.cli.options.settings import Sets, find_recipe
from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe
    from bigbatch.runner.protocol import Runner

What = Annotated[
    str | None,
    typer.Argument(
        metavar="[TASK]",
        help="A task of `bigbatch tasks`, your own as module:Class, a function as module:function, or a settings file (TOML).",
        autocompletion=task_names,
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


def find_runner(
    what: str | None, recipe: Path | None, sets: Sets, *, data: Path | None, margin: float | None, **command: str | None
) -> tuple["Runner", "Recipe"]:
    """The way to run, and the reference recipe, with the `--set` options applied.

    `command` holds the option `--command` and those that go with it, by their names.

    Raises:
        UserError: If options are missing, or contradict each other.
    """
    from bigbatch.core.hardware.denormals import flush_denormals
    from bigbatch.runner.settings_file import command_of_options, load_runner, load_settings

    flush_denormals()
    if command["command"] is not None:
        if what is not None:
            raise UserError(f"{what}: a task and --command are two ways to train; leave one of them out")
        if recipe is None:
            raise UserError("--command: needs --recipe FILE, the settings that your script was tuned at")
        chosen = find_recipe("", recipe, sets)
        return command_of_options(chosen.task, margin=margin, **command), chosen
    if given := [f"--{name}" for name, value in command.items() if value is not None]:
        raise UserError(f"{given[0]}: is of a command; give --command too, or state it in the settings file")
    if what is None:
        raise UserError("TASK: is missing; give a task, module:function, a settings file, or --command")
    if not what.endswith(".toml"):
        return load_runner(what, data=data), find_recipe(what, recipe, sets)
    if recipe is not None:
        raise UserError(f"--recipe: {what} holds a recipe itself; leave one of them out")
    runner, chosen = load_settings(what, data=data)
    return runner, apply_sets(chosen, sets)


def label(what: str | None, runner: "Runner") -> str:
    """What is trained, in words: as it was given, unless that is a file."""
    return runner.name if what is None or what.endswith(".toml") else what


def folder_name(what: str | None, runner: "Runner") -> str:
    """A study's folder below runs/..., of what it trains."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label(what, runner)) or "command"
