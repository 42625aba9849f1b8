"""Options of the program itself, which stand before a command."""

import os
from typing import Annotated

import typer

from bigbatch.core.environment import GOES_ON


def _show_version(asked: bool) -> None:
    if asked:
        from bigbatch.core.version import __version__

        typer.echo(__version__)
        raise typer.Exit


def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,  # noqa: ARG001 read in main
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)] = False,  # noqa: ARG001
) -> None:
    """Options of every command."""
    os.environ[GOES_ON] = str(int(context.invoked_subcommand != "train"))  # all others find what is finished
