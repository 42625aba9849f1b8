"""The citation record: each method's file holds one, and PAPERS.md, the docs and the command line read it from there."""

import importlib
import pkgutil
from dataclasses import dataclass

from bigbatch.core.extras import MissingExtra

FAMILIES = ("scaling", "schedules", "batching", "noise", "curvature", "layers", "optim", "adversarial", "comm", "simulate")
"""Packages whose modules may hold a method."""


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
    """Import every module of every family and collect the records.

    Returns:
        Full module name to its `PAPER`, sorted by module name.
    """
    found: dict[str, Paper] = {}
    for family in FAMILIES:
        package = importlib.import_module(f"bigbatch.{family}")
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            try:
                paper = getattr(importlib.import_module(info.name), "PAPER", None)
            except MissingExtra:  # transports, which hold no paper
                continue
            if isinstance(paper, Paper):
                found[info.name] = paper
    return dict(sorted(found.items()))
