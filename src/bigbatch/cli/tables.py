"""Tables for the terminal."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from bigbatch.optim import GroupTable
    from bigbatch.scaling import Plan
    from bigbatch.study.compare import Comparison

WIDE = 120  # columns


def console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for a table where there is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def show(
    title: str, columns: list[str], rows: list[list[Any]], *, numbers: set[str] | None = None, narrow: frozenset[str] = frozenset()
) -> None:
    """Print a table, its title as it is (no markup, no emoji); columns in `numbers` are aligned to the right.

    Those in `narrow` are left out where the terminal has fewer than 120, and named below.
    """
    wide = console()
    shown = [i for i, column in enumerate(columns) if wide.width >= WIDE or column not in narrow]
    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="dim")
    for i in shown:
        table.add_column(columns[i], justify="right" if columns[i] in (numbers or set()) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(row[i])) for i in shown))
    wide.print(table)
    if left := [column for column in columns if column in narrow and wide.width < WIDE]:
        wide.print(f"with {WIDE} columns: {', '.join(left)}", style="dim", highlight=False)


def say(text: str) -> None:
    """Print a line of words as it is: brackets in it are no markup."""
    console().print(text, highlight=False, markup=False, emoji=False)


def show_plan(plan: "Plan") -> None:
    """Print what a plan changes, and its warnings."""
    from bigbatch.scaling import readable

    title = f"{plan.reference.task or 'recipe'}: batch {plan.reference.batch.global_batch:,} to {plan.recipe.batch.global_batch:,}"
    if (steps := plan.local) is not None:
        title += f" over {steps.workers} workers, which exchange every {steps.samples:,} samples"
    rows = [[c.field, readable(c.before), readable(c.after), c.why, c.paper.short if c.paper else ""] for c in plan.changes]
    show(f"{title}, rule {plan.rule} ({plan.reason})", ["field", "before", "after", "why", "paper"], rows, numbers={"before", "after"})
    for warning in plan.warnings:
        console().print(f"[yellow]warning:[/yellow] {escape(warning)}")


def show_groups(table: "GroupTable") -> None:
    """Print which group each parameter falls into, and why."""
    shapes = ["x".join(map(str, row.shape)) for row in table]
    matrices = ["{} of {}x{}".format(*row.matrices) if row.matrices else "" for row in table]
    rows = [[row.name, shape, row.group, stack, row.why] for row, shape, stack in zip(table, shapes, matrices, strict=True)]
    show("groups of parameters", ["name", "shape", "group", "matrices", "why"], rows)


def show_comparison(comparison: "Comparison", name: str, drawn: str) -> None:
    """Print a comparison: the table of its arms, a sentence each, and what to do."""
    from bigbatch.study.stored_comparison import rows_of

    columns = ["arm", "batch", f"test {comparison.metric}", "updates", "samples/s", "s", "diverged"]  # fits 80 columns
    rows = [list(row)[: len(columns)] for row in rows_of(comparison.to_dict())]
    show(f"{name}, {len(comparison.arms[0].results)} seeds", columns, rows, numbers=set(columns[1:]))
    for text in (*map(comparison.sentence, comparison.arms[1:]), f"what to do: {comparison.advice()}", drawn):
        if text:
            console().print(text, highlight=False)
