"""`bigbatch check`: does a training loop of your own make the same update however its batch is cut, and if not, why?"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import tell
from bigbatch.cli.options.settings import Quiet
from bigbatch.cli.options.values import whole_numbers

if TYPE_CHECKING:
    from bigbatch.check import Report

LOOP = "module:function, called as function(probe); or a script that calls bigbatch.testing.probe()."
ALLOW = "What may change an update by design, and is taken out: dropout, batch_norm."


def check(
    loop: Annotated[str, typer.Argument(metavar="LOOP", help=LOOP)],
    workers: Annotated[str, typer.Option("--workers", metavar="N,N", help="Numbers of workers to check.")] = "1,2,4",
    allow: Annotated[str | None, typer.Option("--allow", metavar="NAME,NAME", help=ALLOW)] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", metavar="S", help="Seconds that one run may take.")] = 60.0,
    json: output.Json = None,
    quiet: Quiet = False,
) -> None:
    """Prove that a loop makes the same update in one pass, in micro-batches and on several workers, or name the culprit.

    Exit code 0 if it does, 1 if not, 2 if it can't be run.
    """
    output.check(json)
    numbers = whole_numbers("--workers", workers)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: processes that are forked can't use a GPU that this one has used
    from bigbatch.check import check as check_loop
    from bigbatch.check.load import load_loop

    say = None if quiet else tell
    allowed = [name.strip() for name in (allow or "").split(",") if name.strip()]
    report = check_loop(load_loop(loop), workers=numbers, allow=allowed, name=loop, time_limit_s=time_limit, say=say)
    if json != output.STANDARD:
        _print(report)
    output.write_json(json, report.to_dict())
    if not report.same:
        raise typer.Exit(1)


def _print(report: "Report") -> None:
    from bigbatch.cli.display.tables import say, show

    columns = ["workers", "micro-batches", "samples a pass", "updates", "gradient", "learning rate", "weights", "left out", "same"]
    rows = []
    for row in report.rows:
        d = row.deviation
        apart = [f"{value:.1e}" if value else "0" for value in (d.gradient, d.learning_rate, d.weights)]
        left_out = "?" if row.dropped is None else row.dropped
        rows.append([*row.arrangement, row.micro_batch, d.steps[0], *apart, left_out, "yes" if row.same else "NO"])
    show(f"{report.loop}: deviation from the first row", columns, rows, numbers=set(columns[:-1]))
    if report.same:
        say(report.sentence())
    for culprit in report.culprits:
        say(f"{culprit.name}: {culprit.sentence}")
        say(f"  shown: {culprit.evidence}")
        say(f"  remedy: {culprit.remedy}")
    for note in report.notes:
        say(f"note: {note}")
