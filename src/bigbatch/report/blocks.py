"""What a page is made of, from the top down: sections of blocks, which the template shows and every kind of report fills."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bigbatch.core.checks import InputError
from bigbatch.core.storage.reading import read_json, reason

Made = TypeVar("Made")


@dataclass(frozen=True)
class Block:
    """One piece of a section: a heading, a table, a plot ...

    Attributes:
        kind: Of the template's macros.
        text: Shown as it is: nothing in it is markup.
        of: What else the macro needs.
    """

    kind: str
    text: str = ""
    of: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What one study or run has to say, results first."""

    title: str
    blocks: tuple[Block, ...]
    lead: str = ""  # for the top of a page that holds this section alone


def heading(text: str) -> Block:
    """A heading inside a section."""
    return Block("heading", text)


def verdict(text: str, outcome: str = "") -> Block:
    """A result in words; the outcome "held", "lost" or "undecided" colours it."""
    return Block("verdict", text, {"outcome": outcome if outcome in ("held", "lost", "undecided") else "plain"})


def advice(text: str) -> Block:
    """What to do."""
    return Block("advice", text)


def note(text: str) -> Block:
    """Small print."""
    return Block("note", text)


def text_of(title: str, text: str) -> Block:
    """Lines as they are, such as a recipe's, folded away."""
    return Block("text", text, {"title": title})


def plots(svgs: Iterable[str]) -> Block:
    """Plots side by side, as `bigbatch.report.plots.to_svg` makes them."""
    return Block("plots", of={"svgs": list(svgs)})


def caveats(items: Iterable[str]) -> list[Block]:
    """What a result does not say."""
    told = [item[:1].upper() + item[1:] for item in items]
    return [heading("Caveats"), Block("list", of={"items": told})] if told else []


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Iterable[str] = (),
    code: Iterable[str] = (),
    stacked: bool = False,
    folded: str = "",
    links: Mapping[str, str] | None = None,
) -> Block:
    """A table, without the columns that have no text in any row.

    Args:
        columns: Their heads.
        rows: Of texts.
        numbers: Columns that are aligned to the right.
        code: Columns that hold names as a file has them.
        stacked: On a narrow screen, a row is a list of its cells below each other, for columns of words; else it is scrolled.
        folded: Title of what opens at a click; not folded if empty.
        links: Addresses by the text of a row's first cell.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    used = [i for i in range(len(columns)) if not texts or any(row[i] for row in texts)]
    content = {"columns": [columns[i] for i in used], "rows": [[row[i] for i in used] for row in texts], "links": dict(links or {})}
    return Block("table", of={**content, "numbers": set(numbers), "code": set(code), "stacked": stacked, "folded": folded})


def facts(rows: Iterable[tuple[str, str]]) -> Block:
    """Names and values, without heads."""
    return Block("facts", of={"rows": list(rows)})


def section_of(path: Path, again: str, make: Callable[[Mapping[str, Any]], Made]) -> Made:
    """What is made of a stored study.

    Args:
        path: Its file.
        again: The command that writes it again.
        make: May find any value wrong.

    Raises:
        InputError: If the file is damaged.
    """
    remedy = f"type the `{again}` that wrote it again"
    stored = read_json(path, remedy)
    try:
        return make(stored)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:  # whatever a wrong value leads to
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {reason(error):.100}); {remedy}") from None
