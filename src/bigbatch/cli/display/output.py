"""`--json` and `--csv`: what a command found, for other programs; the same options for all commands that have them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.core.checks import OutputError, UserError
from bigbatch.core.storage.writing import make_folder, write_atomically

STANDARD = "-"
"""In place of a file: standard output, which then holds nothing else."""
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write everything as JSON; - for standard output.")]
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE|-", help="Write the rows as CSV; - for standard output.")]


def check(*files: str | None) -> None:
    """Refuse, before anything is measured, files whose folders can't be written, and two outputs at one place.

    Raises:
        UserError: With the folder, or the place.
    """
    given = [file for file in files if file is not None]
    if len(set(given)) < len(given):
        raise UserError(f"--json {given[0]} --csv {given[0]}: one would overwrite the other; give each a place of its own")
    for option, file in zip(("--json", "--csv"), files, strict=False):
        if file is not None and file != STANDARD:
            if Path(file).is_dir():
                raise OutputError(f"{option} {file}: is a folder; name a file in it, such as {Path(file) / f'all.{option[2:]}'}")
            make_folder(Path(file).parent, option=option)


def write(to: str | None, text: str) -> None:
    """Write to a file that was `check`ed, or to standard output; nowhere for None.

    Raises:
        OutputError: If the file can't be written.
    """
    if to == STANDARD:
        typer.echo(text.rstrip("\n"))
    elif to is not None:
        write_atomically(Path(to), f"{text.rstrip()}\n".encode())
        typer.echo(f"wrote {to}")


def write_json(to: str | None, value: Any) -> None:
    """Write plain values as JSON, as `write` does."""
    write(to, as_json(value))


def as_json(value: Any) -> str:
    """Plain values as files hold them."""
    return json.dumps(value, indent=2)
