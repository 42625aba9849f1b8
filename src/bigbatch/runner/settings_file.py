"""A settings file: a recipe, and how it is run, in one TOML file.

    task = "resnet"
    num_train_samples = 1437
    budget.epochs = 10
    batch.global_batch = 32
    optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }

    [command]
    run = "python train.py --lr {optimizer.lr} --batch-size {batch.global_batch} --epochs {budget.epochs} --seed {seed}"
    score = "test_acc ([0-9.]+)"
    metric = { name = "accuracy", unit = "%", better = "higher", margin = 0.5 }

or, in place of [command], `[function]` with `run = "module:train"`, `metric` and, if need be, `can` and `num_test_samples`; or neither,
where `task` is a task.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigbatch.core.checks import InputError, RecipeError, UserError
from bigbatch.core.storage.reading import Malformed, first_mistake, parse_toml, read_text
from bigbatch.recipe import Recipe
from bigbatch.recipe.recipe import HOW_IT_IS_RUN
from bigbatch.runner.command import CommandRunner
from bigbatch.runner.fields import check_words
from bigbatch.runner.function import FunctionRunner, load_function
from bigbatch.runner.protocol import Runner
from bigbatch.runner.task import TaskRunner
from bigbatch.tasks.task import SHIPPED, load_task


class FunctionSection(BaseModel):
    """The `[function]` section."""

    model_config = ConfigDict(extra="forbid")

    run: str  # module:function; the file's folder is searched too
    metric: Any = None  # the function's own if left out
    can: list[str] | None = None
    num_test_samples: Annotated[int, Field(gt=0)] | None = None


def load_settings(path: str | Path, *, data: str | Path | None = None) -> tuple[Runner, Recipe]:
    """The way to run and the recipe of a settings file.

    Args:
        path: The file.
        data: Folder of the data set, for a task.

    Raises:
        UserError: If the file can't be read, or a part of it is wrong.
    """
    path = Path(path)
    try:
        fields = parse_toml(read_text(path, "check the path"))
    except (InputError, Malformed) as error:
        raise InputError(f"{path}: {error}" if isinstance(error, Malformed) else str(error)) from None
    command, function = (fields.pop(name, None) for name in HOW_IT_IS_RUN)
    try:
        recipe = Recipe.from_dict(fields)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    name = recipe.task or path.stem
    if command is not None and function is not None:
        raise UserError(f"{path}: has [command] and [function]; keep the one that is to be run")
    try:
        if command is not None:
            return CommandRunner(command, name=name, base=path.parent.absolute()), recipe
        if function is not None:
            return _function(FunctionSection.model_validate(function), name, path.parent.absolute()), recipe
    except ValidationError as error:
        raise UserError(f"{path}: [function] {first_mistake(error)}") from None
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None
    return TaskRunner(load_task(recipe.task, data=data)), recipe


def _function(section: FunctionSection, name: str, folder: Path) -> FunctionRunner:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    check_words(section.can or [])
    function = load_function(section.run)
    return FunctionRunner(function, metric=section.metric, can=section.can, name=name, num_test_samples=section.num_test_samples)


def command_of_options(
    name: str,
    *,
    command: str | None,
    score: str | None,
    metric: str | None,
    better: str | None,
    margin: float | None,
    curve: str | None = None,
) -> CommandRunner:
    """A command that is stated by options.

    Args:
        name: Of what is trained; the program's if empty.
        command: As `run` of `[command]`.
        score: A regular expression, `FILE.json:KEY`, or `tensorboard:FOLDER:TAG`.
        metric: `NAME`, or `NAME,UNIT`.
        better: "higher" or "lower".
        margin: In the metric's unit.
        curve: As `score`, of validation scores on the way.

    Raises:
        UserError: If one is missing or malformed.
    """
    if command is None or score is None or metric is None or better is None:
        raise UserError("--command: needs --score, --metric and --better: where the score is, what it is, and which scores are better")
    if margin is None:
        raise UserError("--command: needs --margin: how much may be lost without calling it a loss, in the metric's unit")
    title, _, unit = metric.partition(",")
    section: dict[str, Any] = {"run": command, "score": _source(score), "curve": _source(curve) if curve is not None else None}
    section["metric"] = {"name": title.strip(), "unit": unit.strip(), "better": better, "margin": margin}
    return CommandRunner(section, name=name or Path(command.split()[0]).stem)


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


def load_runner(given: str, *, data: str | Path | None = None) -> Runner:
    """The way to run that a command line names: a task, or `module:Class` of one, or `module:function`."""
    if ":" in given and given not in SHIPPED:
        module, _, name = given.partition(":")
        if not name[:1].isupper():
            return FunctionRunner(load_function(f"{module}:{name}"))
    return TaskRunner(load_task(given, data=data))
