"""Every method carries its citation, and PAPERS.md is what the citations say."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

from bigbatch.core.paper import FAMILIES, find_card, find_papers

ROOT = Path(__file__).resolve().parents[2]
PAPERS = find_papers()


def test_papers_md_is_fresh():
    spec = importlib.util.spec_from_file_location("papers_table", ROOT / "docs" / "papers_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "PAPERS.md").read_text() == module.table(), "stale: run `make papers`"


@pytest.mark.parametrize("name", PAPERS)
def test_a_method_is_documented_tested_and_alone(name):
    paper, module = PAPERS[name], importlib.import_module(name)
    path = name.removeprefix("bigbatch.").replace(".", "/")
    folder, _, file = path.rpartition("/")
    assert (ROOT / "tests" / folder / f"test_{file}.py").exists()
    assert paper.study is None or (ROOT / paper.study).exists()
    if paper.link:
        assert not paper.arxiv, f"{name}: one address is enough"
        assert paper.link.startswith("https://")
    else:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
    for part in (paper.link or f"arXiv:{paper.arxiv}", "Formula:", "Differs:", "Paper:"):
        assert part in module.__doc__, f"{name}: its docstring lacks {part}"
    source = Path(module.__file__).read_text()
    assert "bigbatch.train" not in source
    assert source.count("\n") <= 260


def test_the_families_are_those_of_the_house():
    for family in FAMILIES:
        assert (ROOT / "src" / "bigbatch" / family / "__init__.py").exists()
    package = ROOT / "src" / "bigbatch"
    with_paper = {p.relative_to(package).parts[0] for p in package.rglob("*.py") if "\nPAPER = Paper(" in p.read_text()}
    assert with_paper <= set(FAMILIES), "a folder with methods that PAPERS.md would miss"


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_read_from_a_file_is_what_its_module_holds(name):
    module = importlib.import_module(name)
    assert PAPERS[name] == module.PAPER
    assert find_card(name) == module.__doc__


def test_papers_are_listed_without_importing_a_method():
    code = "import sys; from bigbatch.core.paper import find_papers; print(len(find_papers()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.stdout == f"{len(PAPERS)} False\n", done.stderr


def test_papers_are_listed_where_triton_is_not_installed():
    """Kernels need triton, transports need packages of extras."""
    code = (
        "import sys; sys.modules |= {'triton': None, 'zmq': None}; from bigbatch.core.paper import find_papers; print(len(find_papers()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.stdout == f"{len(PAPERS)}\n", done.stderr
