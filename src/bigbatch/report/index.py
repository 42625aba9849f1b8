"""The index of a folder: its studies with what came of each, then all of its runs, with links to the reports that are there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bigbatch.core.checks import InputError
from bigbatch.core.storage.reading import read_json
from bigbatch.report.blocks import Block, Section, heading, note, table, verdict
from bigbatch.report.studies import KINDS
from bigbatch.study.all_runs.runs import natural, runs
from bigbatch.study.all_runs.table import RunsTable, printable
from bigbatch.study.comparison.stored import SUFFIX

REPORT = "report.html"
WIDTH = 150
"""Characters, beyond which the fields of the runs' recipes stand in a line below their paths."""


class Study(NamedTuple):
    """One study below a folder."""

    folder: Path
    kind: str
    outcome: str  # in words


def index_section(folder: Path) -> Section | None:
    """Of all that is below a folder; None if nothing is."""
    found, studies = runs(folder), list(studies_below(folder))
    if not found.runs and not studies:
        return None
    links = {printable(name): address for name, address in _links(folder)}
    blocks: list[Block] = [verdict(_in_words(found, studies))]
    if studies:
        rows = [[_name(folder, study.folder), study.kind, study.outcome] for study in studies]
        blocks += [heading("Studies"), table(["folder", "study", "outcome"], rows, stacked=True, links=links)]
    if found.runs:
        blocks += [heading("Runs"), *runs_blocks(found, links=links)]
    if not links:
        blocks.append(note("`bigbatch report FOLDER` writes a report of any folder named here; this page then has a link to it."))
    return Section(f"{printable(folder.resolve().name)}: all runs", tuple(blocks), "What is below this folder.")


def runs_blocks(found: RunsTable, *, folded: str = "", links: dict[str, str] | None = None) -> list[Block]:
    """The table of `bigbatch runs`, and its small print."""
    shown = found.table(WIDTH)
    rows = table(shown.columns, shown.rows, numbers=shown.numbers, stacked=True, folded=folded, links=links)
    return [rows, *(note(f"{words[:1].upper()}{words[1:]}.") for words in found.words())]


def all_runs(folder: Path) -> list[Section]:
    """The table of a study's runs, folded away; nothing where there is one run only."""
    found = runs(folder)
    if len(found.runs) < 2:
        return []
    return [Section("All runs", tuple(runs_blocks(found, folded=_counts(found))))]


def studies_below(folder: Path) -> Iterator[Study]:
    """The studies below a folder, at any depth, in the order of their paths; a damaged one says so."""
    for place, below, names in os.walk(folder):
        below[:] = sorted((name for name in below if not name.startswith(".")), key=natural)
        for name in sorted(names, key=natural):
            if name in KINDS or name.endswith(SUFFIX):
                yield _study(Path(place), name)


def _study(folder: Path, name: str) -> Study:
    kind = KINDS[name].title if name in KINDS else "comparison"
    try:
        stored = read_json(folder / name, "")
        said = stored["advice"] if kind == "comparison" else stored["sentences"][-1] if "sentences" in stored else stored["sentence"]
        if not isinstance(said, str):
            raise TypeError
    except (InputError, LookupError, TypeError):
        return Study(folder, kind, f"{name} is damaged")
    return Study(folder, kind, said)


def _in_words(found: RunsTable, studies: list[Study]) -> str:
    return f"{len(studies)} {'study' if len(studies) == 1 else 'studies'}; {_counts(found)}"


def _counts(found: RunsTable) -> str:
    return found.table(WIDTH).title.removeprefix(f"{found.folder}: ")


def _links(folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of the reports below, by the names of their folders."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        if REPORT in names and Path(place) != folder:
            name = os.path.relpath(place, folder)
            yield name, quote(f"{name}/{REPORT}", errors="surrogateescape")


def _name(folder: Path, below: Path) -> str:
    return printable(os.path.relpath(below, folder))
