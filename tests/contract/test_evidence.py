"""The README's table of evidence says what the tables of the studies say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIES = (ROOT / "studies" / "README.md").read_text()
CLASSICAL = ("none", "linear", "sqrt", "legw", "lars", "lamb", "adam", "adamp")


def rows(text):
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def readme(name):
    """The table of the README below a comment."""
    return rows((ROOT / "README.md").read_text().partition(f"<!-- {name}:")[2].partition("\n\n")[0])


EVIDENCE, WITH_ADAMW = readme("evidence"), readme("evidence with AdamW")


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
    assert len(WITH_ADAMW) == 5


@pytest.mark.parametrize("row", WITH_ADAMW[2:], ids=lambda row: row[0])
def test_a_row_of_references_with_adamw_is_what_the_study_says(row):
    task, tuned, *rest = row
    (head, _, *body), reference = table("optimizers", task)
    best = min if "nats" in tuned else max
    expected = []
    for multiple in ("4", "16"):
        cells = dict(zip(head, next(cells for cells in body if cells[0] == multiple), strict=True))
        keep = [cell for name, cell in cells.items() if name not in ("multiple", "updates", "lamb", "muon (auto)") and "±" in cell]
        expected += [
            mean_and_verdict(best(keep, key=lambda cell: float(re.search(r"[\d.]+", cell)[0]))),
            mean_and_verdict(cells["muon (auto)"]),
        ]
    assert tuned.split(" (")[0] == reference
    assert rest == expected


@pytest.mark.parametrize("row", EVIDENCE[2:], ids=lambda row: row[0])
def test_a_row_is_what_the_studies_say(row):
    task, tuned, *rest = row
    best_16, auto_16, reference = all_reduce(task, "16")
    best_64, auto_64, _ = all_reduce(task, "64")
    head, _, *body = table("local", task)[0]
    local = next(cells[head.index("x64")] for cells in body if cells[:2] == ["local", "4"])
    assert tuned == reference
    assert rest == [best_16, auto_16, best_64, auto_64, mean_and_verdict(local)]


def test_what_held_means_has_the_simulated_power():
    """The page's table of power, and how often "held" is wrong, are those of benchmarks/verdict_error.py."""
    found = json.loads((ROOT / "benchmarks" / "verdict_error.json").read_text())
    by_case = {(row["candidate"], row["way"]): row for row in found["rows"] if row.get("way")}
    page = (ROOT / "docs" / "held.md").read_text()
    ways = {
        "scale": "as it comes",
        "without bad runs": "--max-seeds 10",
        "Welch, 5 seeds": "5 seeds (Welch",
        "Welch, 3 seeds": "number of 3 seeds",
    }
    for way, words in ways.items():
        case = by_case["equal", way]
        row = next(row for row in rows(page) if words in row[0])
        assert row[1:] == [f"{100 * case['held']:.0f} %", f"{case['runs']:.2g}"]
    wrong = [by_case[name, "scale"]["held"] for name in ("loses the margin", "loses the margin, skewed to the left")]
    assert f"{100 * wrong[0]:.1f} % of {found['studies']:,} studies, and {100 * wrong[1]:.1f} % with skewed" in page
