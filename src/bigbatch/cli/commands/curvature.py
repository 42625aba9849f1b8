"""`bigbatch curvature`: how the training loss bends where a run ended, and where another had learnt as much."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting
from bigbatch.cli.options.device import Device
from bigbatch.cli.options.settings import Data, Quiet


def curvature(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of `bigbatch train`, or a seed's of `bigbatch scale`.")],
    against: Annotated[Path | None, typer.Option("--against", metavar="RUN", help="Another run, to compare at the same loss.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Training samples over which the loss is the mean.")] = 512,
    eigenvalues: Annotated[int, typer.Option("--eigenvalues", metavar="K", help="How many, from the largest.")] = 3,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Of their residuals |Hv - lambda v| / |lambda|.")] = 1e-3,
    points: Annotated[int, typer.Option("--points", help="Of the path between two runs.")] = 25,
    match: Annotated[bool, typer.Option(help="Compare where losses are nearest, not where the runs ended.")] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the samples and of random vectors.")] = 0,
    task: Annotated[str | None, typer.Option("--task", help="Your own as module:Class, if the runs are of one.")] = None,
    data: Data = None,
    json: output.Json = None,
    device: Device = None,  # noqa: ARG001 read by its callback
    quiet: Quiet = False,
) -> None:
    """Eigenvalues, trace, density and sharpness of a run's training loss; of two runs side by side, with the path between them."""
    from bigbatch.cli.display.tables import say, show

    with starting("importing torch", quiet=quiet):
        from bigbatch.core.hardware.denormals import flush_denormals
        from bigbatch.report import leave_report
        from bigbatch.study.curvature.curvature import RESULT
        from bigbatch.study.curvature.curvature import curvature as measure

    chosen: dict[str, Any] = {
        "samples": samples,
        "eigenvalues": eigenvalues,
        "tolerance": tolerance,
        "points": points,
        "matched": match,
        "seed": seed,
    }
    output.check(json)
    flush_denormals()
    study = measure(run, against=against, task=task, data=data, quiet=quiet, **chosen)
    drawn = leave_report(run)

    if json != output.STANDARD:
        for table in study.tables():
            show(table.title, table.columns, table.rows, numbers=table.numbers)
        for text in (study.sentence(), *(f"caveat: {doubt}" for doubt in study.doubts())):
            say(text)
        say(f"{drawn}, numbers: {json or run / RESULT}".removeprefix(", "))
    output.write_json(json, study.to_dict())
