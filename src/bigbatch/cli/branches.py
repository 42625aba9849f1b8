"""`bigbatch critical --branch`: the critical batch at points of one run, by branches from its checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli import output
from bigbatch.cli.values import numbers, whole_numbers

PANEL = "Branches of one run"
BranchOf = Annotated[Path | None, typer.Option("--branch", metavar="RUN", help="Branch from a run's checkpoints.", rich_help_panel=PANEL)]
At = Annotated[str | None, typer.Option("--at", metavar="N,N", help="Updates of its checkpoints; three by default.", rich_help_panel=PANEL)]
Multiples = Annotated[
    str | None, typer.Option("--multiples", metavar="K,K", help="Of the run's batch; 1,4,16 or closer.", rich_help_panel=PANEL)
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", help="Of a branch; by default a fifth of the run for all.", rich_help_panel=PANEL),
]
Windows = Annotated[int, typer.Option("--windows", help="Of data: branches of each batch.", rich_help_panel=PANEL)]
LrRule = Annotated[str, typer.Option("--lr", help="How the rate goes with the batch: sqrt, linear, none.", rich_help_panel=PANEL)]
LrFactors = Annotated[
    str, typer.Option("--lr-factors", metavar="F,F", help="Of the rate besides: each batch takes the best.", rich_help_panel=PANEL)
]
Tolerance = Annotated[
    float | None, typer.Option("--tolerance", help="Of the loss, for a batch that is not worse; 0.01 if left out.", rich_help_panel=PANEL)
]
KeepRate = Annotated[bool, typer.Option("--keep-rate", help="The run's schedule, not a fall to zero.", rich_help_panel=PANEL)]


def branch_study(
    base: Any,
    *,
    at: str | None,
    multiples: str | None,
    lr_factors: str,
    out: Path,
    json: str | None,
    quiet: bool,
    **how: Any,
) -> None:
    """Measure, print and write what `bigbatch.study.branches` finds; `how` holds the other options, by their names."""
    from bigbatch.cli.tables import console, show
    from bigbatch.report.branches import write_branches
    from bigbatch.study.branch_results import COLUMNS
    from bigbatch.study.branches import RESULT, branches

    how |= {"at": whole_numbers("--at", at) if at else None, "multiples": whole_numbers("--multiples", multiples) if multiples else None}
    how["lr_factors"] = numbers("--lr-factors", lr_factors)
    study = branches(base, out=out, say=None if quiet else lambda text: typer.echo(text, err=True), **how)
    plot = write_branches(study.to_dict(), out)
    if json != output.STANDARD:
        title = f"{study.task}: branches of {study.samples:,} samples"
        show(title, list(COLUMNS), study.rows(), numbers=set(COLUMNS))
        for text in (*study.sentences(), *(f"not known: {note}" for note in study.notes)):
            console().print(text, highlight=False)
        console().print(f"plot: {plot}, numbers: {json or out / RESULT}", highlight=False)
    output.write_json(json, study.to_dict())
