"""`bigbatch report`: the HTML report of a folder of runs."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli import output


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `bigbatch scale` or `bigbatch train`.")],
    json: output.Json = None,
) -> None:
    """Write DIR/report.html from what was recorded there."""
    from bigbatch.report import write_report

    output.check(json)
    written = write_report(folder)
    if json != output.STANDARD:
        typer.echo(f"wrote {written}")
    output.write_json(json, {"report": str(written)})
