"""`bigbatch extrapolate`: the critical batch at a larger size, from studies at smaller ones."""

from typing import Annotated

import typer

from bigbatch.cli.display import output


def extrapolate(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY[=SIZE]...", help="Three or more that `bigbatch critical` wrote: critical.json, or folder.")
    ],
    size: Annotated[float, typer.Option("--size", help="To predict for, in the sizes' unit: samples of the run, if none is given.")],
    json: output.Json = None,
) -> None:
    """Fit a power law to critical batches of several sizes of data, and predict that of a larger one with its interval."""
    from bigbatch.cli.display.tables import say, show, warn
    from bigbatch.study.critical.extrapolate import extrapolate as predict
    from bigbatch.study.critical.extrapolate import rows_of

    output.check(json)
    found = predict(studies, size)
    if json != output.STANDARD:
        columns = ["study", "size", "critical batch", "95 % interval", "power law"]
        show("critical batch against size", columns, [list(row) for row in rows_of(found)], numbers=set(columns[1:]))
        say(found.sentence())
        if found.prediction.warning:
            warn(found.prediction.warning)
        for doubt in found.doubts():
            say(f"caveat: {doubt}")
    output.write_json(json, found.to_dict())
