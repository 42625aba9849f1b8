"""The table of what can happen to a run: each row names its test, which checks code and words; and all variables are listed."""

import re
from pathlib import Path

import pytest

from bigbatch.core.environment import VARIABLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "accidents.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if "`tests/" in line]


def source_of(test):
    """Of a test function, and of the rest of its file, where words may be shared."""
    path, _, name = test.strip("`").partition("::")
    text = (ROOT / path).read_text()
    found = re.search(rf"^def {name}\(.*?(?=^(?:def|class|@)|\Z)", text, re.M | re.S)
    assert found is not None, f"no {test}"
    return found[0], text


def test_there_are_rows():
    assert len(ROWS) > 30
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_is_what_its_test_sees(row):
    happens, seen, code, _, test = row
    body, whole_file = source_of(test)
    for words in re.findall("`([^`]+)`", seen):
        assert words in whole_file.replace('" \n        f"', "").replace("\\", ""), f"{happens}: {words!r} is not in {test}"
    if "raises(" not in body and "tests/train/" not in test and "tests/core/" not in test and code != "137":  # else the error's class tells
        codes = {"0": r"== 0\b|\(0,|expect=0|stderr == \"\"", "1": r"== 1\b"}
        assert re.search(codes.get(code, rf"\b{code}\b"), whole_file), f"{happens}: exit code {code} is not in {test}"


def test_every_exit_code_is_explained():
    explained = set(re.findall(r"^\| (\d+) \|", PAGE, re.M))
    assert {row[2] for row in ROWS} - {"137"} <= explained


def test_every_variable_is_listed():
    listed = dict(re.findall(r"^\| `(BIGBATCH_\w+)` \| (.*) \|$", PAGE, re.M))
    assert listed == {variable.name: variable.meaning for variable in VARIABLES if variable.by_hand}
