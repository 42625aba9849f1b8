"""A first settings file, with comments: the recipe that was tuned, and how it is run."""

import re
import shlex
from dataclasses import dataclass
from typing import Literal

import tomli_w

from bigbatch.core.checks import UserError
from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.metric import metric_of
from bigbatch.recipe.recipe import Recipe, recipe_names

NEEDED = ("optimizer.lr", "batch.global_batch")
"""Fields without which a command can't be scaled."""
EXAMPLE = "python train.py --lr {optimizer.lr} --batch-size {batch.global_batch} --seed {seed}"
RATES = {"lr": "the tuned rate, at its peak", "adam_lr": "of all but the matrices; the same, unless you tuned it"}
MORE = """
# More of the recipe, if your training has it:
# optimizer.weight_decay = 5e-4
# schedule.warmup = { kind = "gradual", epochs = 0.5 }
# schedule.decay = { kind = "cosine" }
"""


@dataclass(frozen=True)
class Answers:
    """What is known of a training.

    Attributes:
        what: A task, `module:Class` of one, `module:function`, or the command line of a script with fields of the recipe.
        samples: Of the training set, or of an epoch; None for a shipped task.
        epochs: Of the tuned run.
        batch: At which it was tuned, over all workers.
        optimizer: Its name.
        lr: Its tuned rate.
        metric: `NAME,UNIT,higher|lower,MARGIN`, of a function or a command; empty for a task, which states its own.
        score: Where the score of a command is: a regular expression over what it prints.
    """

    what: str
    samples: int | None = None
    epochs: float | None = None
    batch: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    metric: str = ""
    score: str = ""

    @property
    def kind(self) -> Literal["shipped", "task", "function", "command"]:
        """Which of the ways to train it is."""
        if self.what in recipe_names():
            return "shipped"
        if re.fullmatch(r"[\w.]+:\w+", self.what):
            return "task" if self.what.partition(":")[2][:1].isupper() else "function"
        return "command"


def starter(answers: Answers, file: str) -> tuple[str, list[str]]:
    """The text of a settings file, and the commands that take it.

    Args:
        answers: What is known.
        file: Its path, for the commands.

    Raises:
        UserError: If an answer is missing or impossible.
    """
    recipe = _recipe(answers)
    larger = [k * recipe.batch.global_batch for k in (4, 2) if k * recipe.batch.global_batch <= recipe.num_train_samples]
    path = shlex.quote(file)
    commands = [f"bigbatch plan {path} --global-batch {larger[0]}", f"bigbatch scale {path} --to {larger[0]}"] if larger else []
    head = ["# What was tuned, and how it is run; written by `bigbatch init`.", *(f"#     {command}" for command in commands), ""]
    if answers.kind == "shipped":
        return "\n".join([*head, recipe.to_toml()]), commands
    fields = [
        (f"task = {_quoted(recipe.task)}", "a name" if answers.kind != "task" else "the task that is trained"),
        (f"num_train_samples = {recipe.num_train_samples}", "samples in an epoch"),
        (f"seed = {recipe.seed}", "of the first run; others count on"),
        (f"budget.epochs = {_number(recipe.get('budget.epochs'))}", "of the tuned run"),
        (f"batch.global_batch = {recipe.batch.global_batch}", "samples in an update, over all workers"),
        (f"optimizer.name = {_quoted(recipe.optimizer.name)}", ", ".join(OPTIMIZERS)),
        *((f"optimizer.{rate} = {_number(getattr(recipe.optimizer, rate))}", RATES[rate]) for rate in recipe.optimizer.rates),
    ]
    width = max(len(field) for field, _ in fields)
    body = [f"{field.ljust(width)}  # {comment}" for field, comment in fields]
    return "\n".join([*head, *body, MORE, *_how(answers)]).rstrip() + "\n", commands


def _recipe(answers: Answers) -> Recipe:
    if answers.kind == "shipped":
        return Recipe.named(answers.what)
    for name in ("samples", "epochs", "batch", "optimizer", "lr"):
        if getattr(answers, name) is None:
            raise UserError(f"--{name}: is missing; a recipe needs it")
    name = answers.what if answers.kind == "task" else _name(answers)
    optimizer = str(answers.optimizer)
    rates = OPTIMIZERS[optimizer].section.rates if optimizer in OPTIMIZERS else ("lr",)
    return Recipe(
        task=name,
        num_train_samples=answers.samples,
        optimizer={"name": optimizer, **dict.fromkeys(rates, answers.lr)},
        batch={"global_batch": answers.batch},
        budget={"epochs": answers.epochs},
    )


def _name(answers: Answers) -> str:
    """Of a function its module's, of a command its script's."""
    if answers.kind == "function":
        return answers.what.partition(":")[0]
    scripts = [word for word in answers.what.split() if word.endswith((".py", ".sh"))]
    return re.sub(r"\W+", "-", (scripts or answers.what.split() or ["training"])[0].rpartition("/")[2].rpartition(".")[0]) or "training"


def _how(answers: Answers) -> list[str]:
    """The section that says how a function or a command is run."""
    if answers.kind == "task":
        return []
    if not answers.metric:
        raise UserError("--metric: is missing; state NAME,UNIT,higher|lower,MARGIN such as accuracy,%,higher,0.5")
    metric = f"metric = {_metric(answers.metric)}  # margin: what may be lost without calling it a loss"
    if answers.kind == "function":
        return ["[function]", f"run = {_quoted(answers.what)}  # called as function(recipe, run)", metric]
    missing = [field for field in NEEDED if f"{{{field}" not in answers.what]
    if missing:
        raise UserError(f"{answers.what}: has no {{{missing[0]}}}, which a larger batch changes; write it where it belongs: {EXAMPLE}")
    if not answers.score:
        raise UserError('--score: is missing; give a regular expression that finds it in what is printed, such as "test_acc ([0-9.]+)"')
    try:
        groups = re.compile(answers.score).groups
    except re.error as error:
        raise UserError(f"--score {answers.score}: is no regular expression ({error})") from None
    if not groups:
        raise UserError(f"--score {answers.score}: has no group around the number, such as ([0-9.]+)")
    return [
        "[command]",
        f"run = {_quoted(answers.what)}",
        f"score = {_quoted(answers.score)}  # of the test set; the last match counts",
        metric,
        "# curve = 'step (?P<updates>\\d+) .* val acc (?P<score>[0-9.]+)'  # validation scores on the way: `bigbatch critical` needs them",
    ]


def _metric(text: str) -> str:
    """As TOML.

    Raises:
        UserError: If it is malformed.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise UserError(f"--metric {text}: must be NAME,UNIT,higher|lower,MARGIN such as accuracy,%,higher,0.5")
    name, unit, better, margin = parts
    try:
        metric_of({"name": name, "unit": unit, "better": better, "margin": float(margin)})
    except ValueError as error:
        raise UserError(f"--metric {text}: {error}") from None
    return f"{{ name = {_quoted(name)}, unit = {_quoted(unit)}, better = {_quoted(better)}, margin = {_number(float(margin))} }}"


def _quoted(text: str) -> str:
    """A TOML string, in single quotes where that is easier to read."""
    if "'" not in text and ('"' in text or "\\" in text) and text.isprintable():
        return f"'{text}'"
    return tomli_w.dumps({"": text}).partition(" = ")[2].rstrip("\n")


def _number(value: float) -> str:
    """A number of TOML with all its digits."""
    return short if float(short := f"{value:g}") == value else repr(value)
