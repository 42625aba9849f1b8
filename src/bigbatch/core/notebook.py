"""How plans, studies and results look in a notebook: one line as text, a table as HTML, a plot, a pandas DataFrame.

A class says what it is in words and in rows; `Displayed` makes the rest of it. matplotlib is imported when something is plotted, pandas
when a DataFrame is asked for; neither is needed for anything else.
"""

import html
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError

WIDTH = 160
"""Most characters of the text form."""
ROWS = 40
"""Most rows of the HTML form."""


class Content(NamedTuple):
    """What there is to show of a value.

    Attributes:
        words: Sentences, the most important first; what of them fits a line is the text form.
        columns: Names.
        rows: Plain values, one a column.
    """

    words: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Displayed:
    """Base of what is shown in notebooks; a class gives `shown()`."""

    def shown(self) -> Content:
        """Words and rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def plot(self) -> "Plot":
        """The plot of the report, shown by a notebook; its `save` writes it.

        Raises:
            MissingExtra: If matplotlib is not installed.
            UserError: If there is nothing to draw.
        """
        return plot_of(self)

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame, with values as they are measured.

        Raises:
            UserError: If pandas is not installed.
        """
        return as_pandas(self)


class Plot:
    """A plot as SVG.

    Attributes:
        svg: An `<svg>` element.
    """

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def __repr__(self) -> str:
        return f"Plot({len(self.svg):,} characters of SVG)"

    def _repr_html_(self) -> str:
        return self.svg

    def save(self, path: Any) -> None:
        """Write it as an SVG file.

        Raises:
            OutputError: If it can't be written.
        """
        from pathlib import Path

        from bigbatch.core.storage.writing import write_atomically

        write_atomically(Path(path), self.svg.encode())


def short(value: Any) -> str:
    """The text form: the class, and its first words in a line."""
    words = " ".join(value.shown().words[0].split())
    room = WIDTH - len(type(value).__name__) - 2
    return f"{type(value).__name__}({words if len(words) <= room else words[: room - 3] + '...'})"


def as_html(value: Any) -> str:
    """The HTML form: the words, then the rows; all of it text, whatever it holds."""
    shown = value.shown()
    lines = [f"<p>{html.escape(text)}</p>" for text in shown.words]
    heads = "".join(f"<th>{html.escape(str(name))}</th>" for name in shown.columns)
    body = ("".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) for row in shown.rows[:ROWS])
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"
    left = len(shown.rows) - ROWS
    return "".join([*lines, table if shown.rows else "", f"<p>and {left:,} further rows: to_pandas()</p>" if left > 0 else ""])


def as_pandas(value: Any) -> Any:
    """The rows as a DataFrame.

    Raises:
        UserError: If pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise UserError("to_pandas needs pandas, which is not installed: pip install pandas; or use to_dict()") from None
    shown = value.shown()
    return pandas.DataFrame([list(row) for row in shown.rows], columns=list(shown.columns))


def plot_of(value: Any, **more: Any) -> Plot:
    """What `bigbatch.report` draws of a value.

    Raises:
        MissingExtra: If matplotlib is not installed.
        UserError: If there is nothing to draw.
    """
    return Plot(importlib.import_module("bigbatch.report.notebook").draw(value, **more))  # it is above everything that is drawn


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
