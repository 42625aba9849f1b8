"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigbatch.cli.display.layout import GAP, lay_out
from bigbatch.cli.display.listing import as_list

AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for a table where there is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def show(title: str, columns: list[str], rows: list[list[Any]], *, numbers: set[str] | None = None, spare: Sequence[str] = ()) -> None:
    """Print a table, its title as it is (no markup, no emoji); columns in `numbers` are aligned to the right.

    Words are never broken. Where the terminal is too narrow for a line a row, columns in `spare` are left out, the last first, and named
    below; where that is not enough, the table becomes a list.
    """
    whole, out = numbers or set(), console()
    cells = [[str(cell) for cell in row] for row in rows]
    layout = lay_out(columns, cells, out.width, whole=whole, spare=spare)
    names = [columns[i] for i in layout.columns]
    if not layout.widths:
        say(title)
        out.print(as_list(names, [[row[i] for i in layout.columns] for row in cells], out.width, whole=whole), **AS_IT_IS, soft_wrap=True)
    else:
        looks: dict[str, Any] = {} if layout.boxed else {"box": None, "padding": (0, GAP, 0, 0), "pad_edge": False}
        table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="dim", **looks)
        for name, width in zip(names, layout.widths, strict=True):
            table.add_column(name, justify="right" if name in whole else "left", width=width)
        for row in cells:
            table.add_row(*(Text(row[i]) for i in layout.columns))
        out.print(table)
    if left := [column for column in columns if column not in names]:
        say(f"a wider terminal also shows: {', '.join(left)}")


def say(text: str) -> None:
    """Print words as they are: brackets in them are no markup. Wrapped on a terminal, else one line."""
    out = console()
    out.print(text, **AS_IT_IS, soft_wrap=not out.is_terminal)


def warn(text: str) -> None:
    """Print a warning about what was found."""
    out = console()
    out.print(Text.assemble(("warning:", "yellow"), f" {text}"), soft_wrap=not out.is_terminal)
