"""`bigbatch critical --branch`: the critical batch at points of one run, by branches from its checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import tell
from bigbatch.cli.options.values import numbers, whole_numbers

BranchOf = Annotated[
    Path | None, typer.Option("--branch", metavar="RUN", help="Branch from the checkpoints of a run, by the options below.")
]
At = Annotated[str | None, typer.Option("--at", metavar="N,N", help="Updates of its checkpoints; three by default.")]
Multiples = Annotated[str | None, typer.Option("--multiples", metavar="K,K", help="Of the run's batch; 1,4,16 or closer by default.")]
Samples = Annotated[int | None, typer.Option("--samples", help="Of each branch; by default a checkpoint's cost a fifth of the run.")]
Windows = Annotated[int, typer.Option("--windows", help="Of data: so many branches of each batch.")]
LrRule = Annotated[str, typer.Option("--lr", help="How a branch's rate goes with its batch: sqrt, linear, none.")]
LrFactors = Annotated[str, typer.Option("--lr-factors", metavar="F,F", help="Of a branch's rate besides: each batch takes the best.")]
Tolerance = Annotated[float | None, typer.Option("--tolerance", help="By which the loss of a branch may be worse; 0.01 by default.")]
KeepRate = Annotated[bool, typer.Option("--keep-rate", help="Branches keep the run's schedule, and don't fall to zero.")]


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
    """Measure, print and write what `bigbatch.study.branches.branches` finds; `how` holds the other options, by their names."""
    from bigbatch.cli.display.tables import say, show
    from bigbatch.report import leave_report
    from bigbatch.study.branches.branches import RESULT, branches
    from bigbatch.study.branches.study import COLUMNS

    how |= {"at": whole_numbers("--at", at) if at else None, "multiples": whole_numbers("--multiples", multiples) if multiples else None}
    how["lr_factors"] = numbers("--lr-factors", lr_factors)
    study = branches(base, out=out, say=None if quiet else tell, **how)
    drawn = leave_report(out, RESULT)
    if json != output.STANDARD:
        title = f"{study.task}: branches of {study.samples:,} samples"
        show(title, list(COLUMNS), study.rows(), numbers=set(COLUMNS))
        for text in (*study.sentences(), *(f"caveat: {note}" for note in study.notes)):
            say(text)
        say(f"{drawn}, numbers: {json or out / RESULT}".removeprefix(", "))
    output.write_json(json, study.to_dict())
