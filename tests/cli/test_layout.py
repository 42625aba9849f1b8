"""Tables at any width: words are never broken, rows are lines where they fit, and what doesn't fit is a list."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bigbatch.cli.display import tables
from bigbatch.cli.display.layout import lay_out
from bigbatch.cli.display.tables import show

COLUMNS = ["field", "before", "after", "why"]
ROWS = [
    ["schedule.warmup.start_factor", "0", "0.333333", "no update is wasted"],
    ["optimizer.lr", "0.1", "0.0198517", "0.4 / sqrt(406): of the orthogonalised matrices, whose size is that of the weights"],
]
WHOLE = {"before", "after"}


def shown(monkeypatch, width, columns=COLUMNS, rows=ROWS, **how):
    file = io.StringIO()
    monkeypatch.setattr(tables, "console", lambda: Console(file=file, width=width, force_terminal=True, color_system=None))
    show("a title", columns, rows, **{"numbers": WHOLE, **how})
    text = file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    return text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_word_is_broken(monkeypatch, width):
    text = shown(monkeypatch, width)
    for row in ROWS:
        for cell in row:
            for word in cell.split():
                assert word in text


def test_wide_boxed_narrower_wrapped_narrow_a_list(monkeypatch):
    wide, wrapped, narrow = (shown(monkeypatch, width) for width in (160, 90, 50))
    assert wide.count("\n") == 7
    assert "┏" in wide
    assert "┏" in wrapped
    assert wrapped.count("\n") > 7
    assert narrow.splitlines()[1:4] == ["schedule.warmup.start_factor", "  before 0, after 0.333333", "  why: no update is wasted"]


def test_spare_columns_are_left_out_one_by_one_and_named(monkeypatch):
    columns, rows = ["name", "one", "two", "words"], [["a_name", "1" * 20, "2" * 20, "words " * 10]]
    how = {"numbers": {"one", "two"}, "spare": ["two", "words"]}
    texts = [shown(monkeypatch, width, columns, rows, **how) for width in (160, 60, 40)]
    assert "also shows" not in texts[0]
    assert texts[1].endswith("a wider terminal also shows: words\n")
    assert texts[2].endswith("a wider terminal also shows: two, words\n")
    for text in texts:
        assert sum("a_name" in line for line in text.splitlines()) == 1


def test_a_list_leaves_empty_cells_out(monkeypatch):
    rows = [["a.field", "", "a value that is wide", "for a reason"], ["another", "1", "", ""]]
    assert shown(monkeypatch, 30, rows=rows).splitlines()[1:] == [
        "a.field",
        "  after a value that is wide",
        "  why: for a reason",
        "another",
        "  before 1",
    ]


words = st.text("abcdefghij._", min_size=1, max_size=30)
cells = st.lists(words, max_size=6).map(" ".join)


@given(rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4), width=st.integers(20, 160))
def test_what_is_laid_out_fits(rows, width):
    columns = ["one", "two", "three"]
    layout = lay_out(columns, rows, width, whole={"two"}, spare=[])
    if not layout.widths:
        return
    cost = 3 * len(layout.widths) + 1 if layout.boxed else 2 * (len(layout.widths) - 1)
    assert sum(layout.widths) + cost <= width
    for i, room in zip(layout.columns, layout.widths, strict=True):
        for row in rows:
            parts = [row[i]] if columns[i] == "two" else row[i].split()
            assert max(map(len, parts), default=0) <= room
