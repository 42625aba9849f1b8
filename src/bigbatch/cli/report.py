"""`bigbatch report`: the HTML report of a folder of runs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `bigbatch scale` or `bigbatch train`.")],
) -> None:
    """Write DIR/report.html from what was recorded there."""
    from bigbatch.report import write_report

    typer.echo(f"wrote {write_report(folder)}")
