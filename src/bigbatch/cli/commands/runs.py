"""`bigbatch runs`: all runs below a folder, in one table."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli.display import output


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any folder with runs in it, at any depth.")],
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="COLUMN", help="run, score, updates, seconds, state or a field such as lr; -score: highest first."),
    ] = "run",
    json: output.Json = None,
    csv: output.Csv = None,
) -> None:
    """List all runs below a folder: in what their recipes differ, score, updates, seconds, state."""
    from bigbatch.cli.display.tables import console, say, show
    from bigbatch.study.all_runs.runs import runs as find

    output.check(json, csv)
    found = find(folder).sorted_by(sort)
    if output.STANDARD not in (json, csv):
        table = found.table(console().width)
        show(table.title, table.columns, table.rows, numbers=table.numbers)
        for text in found.words():
            say(text)
    output.write_json(json, found.to_dict())
    output.write(csv, found.to_csv())
