"""The README's table of evidence says what the tables of the studies say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIES = (ROOT / "studies" / "README.md").read_text()
CLASSICAL = ("none", "linear", "sqrt", "legw", "lars", "lamb", "adam", "adamp")


def rows(text):
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


EVIDENCE = rows((ROOT / "README.md").read_text().partition("<!-- evidence")[2].partition("\n\n")[0])


def table(study, task):
    """Rows of the first table of a task in a study, the head first; and its reference."""
    part = re.search(rf"^## {study}:.*?(?=^## )", STUDIES, re.M | re.S)[0]
    text = re.search(rf"^\*\*{task}\*\*, reference ([\d.]+ ± [\d.]+).*?\n\n(.*?)\n\n", part, re.M | re.S)
    return rows(text[2]), text[1]


def mean_and_verdict(cell):
    """As the README shows it: bold where it held."""
    found = re.search(r"[\d.]+ ± [\d.]+", cell)
    return f"**{found[0]}**" if "held" in cell else found[0]


def all_reduce(task, multiple):
    (head, _, *body), reference = table("optimizers", task)
    row = next(row for row in body if row[0] == multiple)
    cells = dict(zip(head, row, strict=True))
    classical = [cells[name] for name in CLASSICAL if "±" in cells[name] and "diverged" not in cells[name]]
    best = max(classical, key=lambda cell: float(re.search(r"[\d.]+", cell)[0]))
    return mean_and_verdict(best), mean_and_verdict(cells["muon"]), reference


def test_there_are_rows():
    assert len(EVIDENCE) == 6


@pytest.mark.parametrize("row", EVIDENCE[2:], ids=lambda row: row[0])
def test_a_row_is_what_the_studies_say(row):
    task, tuned, *rest = row
    best_16, auto_16, reference = all_reduce(task, "16")
    best_64, auto_64, _ = all_reduce(task, "64")
    head, _, *body = table("local", task)[0]
    local = next(cells[head.index("x64")] for cells in body if cells[:2] == ["local", "4"])
    assert tuned == reference
    assert rest == [best_16, auto_16, best_64, auto_64, mean_and_verdict(local)]
