"""The `bigbatch` program: its subcommands, and how errors leave it."""

import os
import sys
from typing import Annotated

import typer

from bigbatch.cli import doctor, papers, plan, report, scale, tasks, train
from bigbatch.core.checks import Diverged, Interrupted, UserError

app = typer.Typer(
    name="bigbatch",
    help="Scale a PyTorch training run to large batches without losing accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for command in (scale.scale, plan.plan, train.train, tasks.tasks, report.report, papers.papers, doctor.doctor):
    app.command()(command)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,  # noqa: ARG001 read in main
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Options of every command."""
    if version:
        from bigbatch import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 diverged, 130 interrupted."""
    debug = "--debug" in sys.argv or bool(os.environ.get("BIGBATCH_DEBUG"))
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except Exception as error:
        if debug:
            raise
        codes = {UserError: 2, Diverged: 3, Interrupted: 130}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
        label = {1: f"unexpected {type(error).__name__}", 2: "error", 3: "diverged", 130: "interrupted"}[code]
        hint = "; this is a bug in bigbatch or in the task: --debug shows the traceback" if code == 1 else ""
        print(f"{label}: {error}{hint}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted: nothing more was saved", file=sys.stderr)
        sys.exit(130)
