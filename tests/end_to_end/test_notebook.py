"""The notebook of the examples, cell by cell as Jupyter runs it: each value is short as text, and well-formed as HTML."""

import ast
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
LONGEST = 200


def run_cell(source, names):
    """The value of its last line, where that is an expression."""
    *statements, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        statements, last = [*statements, last], None
    exec(compile(ast.Module(statements, []), str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_every_cell(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    stored = json.loads(NOTEBOOK.read_text())
    assert stored["nbformat"] == 4
    names, kinds = {}, []
    for cell in stored["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []  # they are nobody's machine
        value = run_cell("".join(cell["source"]), names)
        kinds.append(type(value).__name__)
        if type(value).__module__.startswith("bigbatch"):
            assert len(repr(value)) <= LONGEST
            assert "\n" not in repr(value)
            page = value._repr_html_()
            ElementTree.fromstring(f"<div>{page}</div>")
            assert re.search("<table|<svg", page)
    assert kinds.count("Plot") == 4
    assert {"Recipe", "Plan", "Result", "Comparison", "NoiseStudy", "Series"} <= set(kinds)
    assert (tmp_path / "report.html").exists()
