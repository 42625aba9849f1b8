"""The citation record: each method's file holds one, and PAPERS.md, the docs and the command line read it from there."""

import ast
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("scaling", "schedules", "batching", "noise", "curvature", "layers", "optim", "adversarial", "comm", "simulate")
"""Packages whose modules may hold a method."""
RECORD = re.compile(r"^PAPER = Paper\(", re.MULTILINE)
CONSTANT = re.compile(r"^([A-Z_]+) = (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Attributes:
        method: What the file implements, in the field's words.
        title: Title of the paper.
        authors: First author and "et al.", or all of up to three.
        year: Year of the first public version.
        arxiv: arXiv number; "" for a paper that is not there.
        where: Section, equation or algorithm in the paper.
        study: File of the study in this repository that measures the method, if there is one.
        link: Address of a paper that is not on arXiv.
    """

    method: str
    title: str
    authors: str
    year: int
    arxiv: str
    where: str
    study: str | None = None
    link: str = ""

    @property
    def url(self) -> str:
        """Address of the abstract.

        >>> Paper("m", "T", "Byrd et al.", 2011, "", "Section 3", link="https://doi.org/10.1007/s10107-012-0572-5").url
        'https://doi.org/10.1007/s10107-012-0572-5'
        """
        return self.link or f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def short(self) -> str:
        """Citation for a table cell: authors, year and place.

        >>> Paper("m", "T", "Goyal et al.", 2017, "1706.02677", "Section 2.2").short
        'Goyal et al. 2017, Section 2.2'
        """
        return f"{self.authors} {self.year}, {self.where}"


def find_papers() -> dict[str, Paper]:
    """Collect the records of every family's modules. No module is imported: some take seconds, some need what is not installed everywhere.

    Returns:
        Full module name to its `PAPER`, sorted by module name.
    """
    found: dict[str, Paper] = {}
    root = Path(__file__).parents[1]
    for family in FAMILIES:
        for path in (root / family).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if (start := RECORD.search(text)) is not None:
                name = ".".join(("bigbatch", *path.relative_to(root).with_suffix("").parts))
                found[name] = _record(text, start.start())
    return dict(sorted(found.items()))


def find_card(module: str) -> str:
    """The docstring of a module, which is not imported.

    Args:
        module: Full name, as `find_papers` gives it.
    """
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""


def _record(text: str, start: int) -> Paper:
    """The record that begins there: its arguments are literals, or names that were given literals above."""
    known: dict[str, Any] = {}
    for name, value in CONSTANT.findall(text[:start]):
        with contextlib.suppress(ValueError, SyntaxError):
            known[name] = ast.literal_eval(value)
    end = text.index("\n)\n", start) + 2 if text.startswith("PAPER = Paper(\n", start) else text.index("\n", start)
    call = ast.parse(text[start:end].removeprefix("PAPER = "), mode="eval").body
    assert isinstance(call, ast.Call)

    def value_of(node: ast.expr) -> Any:
        return known[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    return Paper(*map(value_of, call.args), **{k.arg or "": value_of(k.value) for k in call.keywords})
