"""`bigbatch report`: the HTML report of any folder."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli.display import output


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any folder: of a run, a study, or one that holds some.")],
    json: output.Json = None,
) -> None:
    """Write DIR/report.html from what was recorded there, finished or not; an index where runs and studies lie below it."""
    from bigbatch.report import write_report

    output.check(json)
    written = write_report(folder)
    if json != output.STANDARD:
        typer.echo(f"wrote {written}")
    output.write_json(json, {"report": str(written)})
