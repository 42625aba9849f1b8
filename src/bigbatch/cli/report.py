"""`bigbatch report`: the HTML report of any folder."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any folder: of a run, a study, or one that holds some.")],
) -> None:
    """Write DIR/report.html from what was recorded there, finished or not; an index where runs and studies lie below it."""
    from bigbatch.report import write_report

    typer.echo(f"wrote {write_report(folder)}")
