"""`bigbatch init`: a settings file of your case."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.display import output
from bigbatch.core.checks import OutputError, UserError
from bigbatch.core.methods import OPTIMIZERS

WHAT = "A task, your own as module:Class, module:function, or the command line of a script with fields such as {optimizer.lr}."


def init(
    what: Annotated[str | None, typer.Argument(metavar="[WHAT]", help=WHAT)] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Of the training set.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Of the tuned run.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="At which it was tuned, over all workers.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="sgd, adamw, ...")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="The tuned rate.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="NAME,UNIT,higher|lower,MARGIN", help="What its score is.")] = None,
    score: Annotated[str | None, typer.Option("--score", help="A regular expression that finds a command's score.")] = None,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("bigbatch.toml"),
    json: output.Json = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a settings file of your case, by what the options say and by asking for the rest."""
    from bigbatch.core.storage.writing import make_folder, write_atomically
    from bigbatch.recipe.starter import EXAMPLE, Answers, starter

    output.check(json)
    if out.exists() and not force:
        raise OutputError(f"{out}: exists; replace it with --force, or choose another --out")
    what = _ask(what, "WHAT", "1/5  What trains: a task, module:Class, module:function, or a command line", EXAMPLE, str)
    kind = Answers(what).kind
    known: dict[str, Any] = {}
    if kind != "shipped":
        known["samples"] = _ask(samples, "--samples", "2/5  Samples of the training set", None, int)
        known["epochs"] = _ask(epochs, "--epochs", "     and epochs of the tuned run", 10.0, float)
        known["batch"] = _ask(batch, "--batch", "3/5  Batch at which it was tuned, over all workers", 128, int)
        known["optimizer"] = _ask_optimizer(optimizer)
        known["lr"] = _ask(lr, "--lr", "     and its tuned rate", None, float)
    if kind in ("function", "command"):
        known["metric"] = _ask(metric, "--metric", "5/5  Score: name,unit,higher|lower,margin", "accuracy,%,higher,0.5", str)
    if kind == "command":
        known["score"] = _ask(score, "--score", "     and where it is in what is printed", "test_acc ([0-9.]+)", str)
    text, commands = starter(Answers(what, **known), str(out))
    make_folder(out.parent)
    write_atomically(out, text.encode())
    if json != output.STANDARD:
        typer.echo("\n".join([f"wrote {out}; read it, and go on with", *(f"  {command}" for command in commands)]))
    output.write_json(json, {"file": str(out), "kind": kind, "commands": commands})


def _ask_optimizer(given: str | None) -> str:
    """As `_ask`; a person who answers with none is asked again."""
    while (name := str(_ask(given, "--optimizer", f"4/5  Optimizer ({', '.join(OPTIMIZERS)})", "sgd", str))) not in OPTIMIZERS:
        if given is not None:
            return given  # which is refused with all that is wrong
        typer.echo(f"     {name!r}: is none of these", err=True)
    return name


def _ask(given: Any, option: str, question: str, default: Any, kind: Callable[[str], Any]) -> Any:
    """What an option says; else what a person answers, where there is one to ask."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UserError(f"{option}: is missing, and there is no terminal to ask at; give it")
    return typer.prompt(question, default=default, type=kind, err=True)
