"""How a table fits a width: words are wrapped at spaces and never broken; what doesn't fit becomes a list."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

TALLEST = 3
"""Lines of a row beyond which a list reads better than a table."""
BOX, GAP = 3, 2
"""Characters that a column costs beside its words, with lines around it and without."""


class Layout(NamedTuple):
    """What of a table is shown, and how wide.

    Attributes:
        columns: Numbers of the columns that are shown.
        widths: Of each of them; none for a list.
        boxed: Whether there are lines around them.
    """

    columns: list[int]
    widths: list[int]
    boxed: bool = True


def lay_out(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, whole: set[str], spare: Sequence[str]) -> Layout:
    """Choose what fits.

    Args:
        columns: Titles.
        rows: Cells.
        width: Characters of a line.
        whole: Columns whose cells are not wrapped, such as numbers.
        spare: Columns that may be left out, the last one first.

    Returns:
        One line a row if that fits, with all columns or without some of the spare ones; else cells of several lines; else a list.
    """
    wide = [max((len(row[i]) for row in [columns, *rows]), default=0) for i in range(len(columns))]
    left: list[int] = []
    for dropped in [None, *reversed(spare)]:
        left = [i for i in (left or range(len(columns))) if columns[i] != dropped]
        for boxed in (True, False):
            if sum(wide[i] for i in left) <= _room(width, len(left), boxed=boxed):
                return Layout(left, [wide[i] for i in left], boxed)
    least = [max((_longest(row[i], whole=columns[i] in whole and row is not columns) for row in [columns, *rows]), default=0) for i in left]
    for boxed in (True, False):
        widths = _shrink([wide[i] for i in left], least, _room(width, len(left), boxed=boxed))
        if widths and all(_lines(row[i], w) <= TALLEST for row in rows for i, w in zip(left, widths, strict=True)):
            return Layout(left, widths, boxed)
    return Layout(left, [])


def _room(width: int, columns: int, *, boxed: bool) -> int:
    return width - (BOX * columns + 1 if boxed else GAP * (columns - 1))


def _longest(text: str, *, whole: bool) -> int:
    return len(text) if whole else max(map(len, text.split()), default=0)


def _lines(text: str, width: int) -> int:
    return len(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def _shrink(wide: list[int], least: list[int], room: int) -> list[int]:
    """The widest columns narrower, down to the least that each needs; nothing if that is not enough."""
    if sum(least) > room:
        return []
    widths = list(wide)
    while sum(widths) > room:
        i = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[i] -= 1
    return widths
