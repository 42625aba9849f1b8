"""A table as a list, for terminals that are too narrow for it."""

import textwrap
from collections.abc import Sequence


def as_list(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, whole: set[str]) -> str:
    """Rows as paragraphs: the first cell, below it on one line what is whole, then each of the others; no empty cells."""
    lines: list[str] = []
    for row in rows:
        named = [(name, cell) for name, cell in zip(columns[1:], row[1:], strict=True) if cell]
        short = ", ".join(f"{name} {cell}" for name, cell in named if name in whole)
        texts = [short, *(f"{name}: {cell}" for name, cell in named if name not in whole)]
        lines.append(row[0])
        for text in filter(None, texts):
            lines += textwrap.wrap(
                text, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(lines)
