"""Options of `bigbatch scale`, its exit code, and what it prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigbatch.study.comparison.comparison import Comparison

MOST = "Runs an arm at most, until it is decided; 14, or --seeds if that is more."
MARGIN = "What may be lost without calling it a loss, in the metric's unit; the task's own, or 0.5 points."
BAD = 'Share of runs that may be bad; "held" excludes more: 0.2 takes 14 seeds, 0.5 takes 5.'
FIRST = "Runs an arm before the first verdict; what 80 % power asks for, if left out."
FAIL = "Exit code 5 if the plan did not hold, 6 if that is undecided."

To = Annotated[int, typer.Option("--to", "--global-batch", help="Batch to scale to; by --rule local, samples between exchanges.")]
Workers = Annotated[int | None, typer.Option("--workers", help="For --rule local: processes of this machine that exchange.")]
Seeds = Annotated[int | None, typer.Option("--seeds", help=FIRST)]
MaxSeeds = Annotated[int | None, typer.Option("--max-seeds", help=MOST)]
Margin = Annotated[float | None, typer.Option("--margin", help=MARGIN)]
BadShare = Annotated[float, typer.Option("--bad-share", help=BAD)]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of all runs; runs/scale/TASK if left out.")]
FailUnlessHeld = Annotated[bool, typer.Option("--fail-unless-held", help=FAIL)]

EXIT_CODES = {"held": 0, "lost": 5, "undecided": 6}


def exit_code(comparison: "Comparison") -> int:
    """Of `--fail-unless-held`: by the verdict on the plan; one that can't be judged is undecided."""
    return EXIT_CODES[comparison.verdict(comparison.arms[2]).outcome]


def show_comparison(comparison: "Comparison", name: str, drawn: str) -> None:
    """Print a comparison: the table of its arms, a sentence each, and what to do."""
    from bigbatch.cli.display.tables import say, show
    from bigbatch.study.comparison.stored import rows_of

    columns = ["arm", "batch", f"test {comparison.metric}", "updates", "samples/s", "s", "diverged"]  # fits 80 columns
    rows = [list(row)[: len(columns)] for row in rows_of(comparison.to_dict())]
    show(f"{name}, {len(comparison.arms[0].results)} seeds", columns, rows, numbers=set(columns[1:]))
    for text in (*map(comparison.sentence, comparison.arms[1:]), f"what to do: {comparison.advice()}", drawn):
        if text:
            say(text)
