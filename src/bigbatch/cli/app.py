"""The `bigbatch` program: its subcommands, and how errors leave it."""

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from bigbatch.cli.leave import explain, interrupt, leave
from bigbatch.cli.notices import warn_in_one_line
from bigbatch.comm.launch.launcher import watch_launcher
from bigbatch.core.environment import check_environment
from bigbatch.core.signals import caught

app = typer.Typer(
    name="bigbatch",
    help="Scale a PyTorch training run to large batches without losing accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
COMMANDS = "scale noise critical steps extrapolate curvature plan train check tasks runs report export papers doctor simulate"
for name in COMMANDS.split():
    app.command()(getattr(import_module(f"bigbatch.cli.{name}"), name))


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,  # noqa: ARG001 read in main
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Options of every command."""
    if version:
        from bigbatch.core.version import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the program.

    Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 diverged, 4 workers lost, 5 done, but workers were lost on the way,
    130 interrupted.
    """
    warn_in_one_line()
    if "--debug" in sys.argv:
        os.environ["BIGBATCH_DEBUG"] = "1"  # workers too
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    with caught(interrupt):
        try:
            check_environment()
            watch_launcher()
            app()
        except SystemExit as end:
            leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        except Exception as error:
            leave(explain(error))
