"""`make gpu`: refused in one line where it can't run, and each part run end to end on the CPU."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import table
from benchmarks.gpu.part import Part
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"commit": "abc", "device": "a GPU", "torch": "2.13.0", "quick": False}


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks/gpu/run.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def driver():
    spec = util.spec_from_file_location("gpu_driver", ROOT / "benchmarks/gpu/run.py")
    module = util.module_from_spec(spec)
    first = sys.path[0]
    spec.loader.exec_module(module)
    sys.path[0] = first
    return module


PARTS = list(driver().PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_dry(part, tmp_path):
    done = run("--device", "cpu", "--quick", "--out", str(tmp_path), "--parts", part)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no figure is a claim about any GPU" in done.stdout
    assert "goal" not in done.stdout
    stored = json.loads((tmp_path / f"{part}.json").read_text())
    assert stored["complete"]
    assert stored["rows"]
    assert stored["facts"]["device"] == "cpu"
    if part == "norms":
        assert "norms: complete already" in run("--device", "cpu", "--quick", "--out", str(tmp_path), "--parts", part).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_one_line():
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "sees no GPU" in done.stderr


def test_missing_packages_are_named_in_one_line(monkeypatch, capsys):
    module = driver()
    monkeypatch.setattr(module, "NEEDED", (*module.NEEDED, "no_such_package", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert module.main() == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "missing: no_such_package nor_this;" in said


def stored(folder, rows, **more):
    path = folder / "steps.json"
    path.write_text(json.dumps({"part": "steps", "complete": True, "facts": FACTS, "rows": rows} | more))
    return {"steps": path}


def test_the_table_has_each_value_beside_its_goal(tmp_path, capsys):
    rows = [
        {"what": "ratio", "value": 1.2, "unit": "", "goal": ["<=", 1.1]},
        {"what": "share", "value": 0.8, "unit": "", "goal": [">=", 0.75]},
    ]
    assert table.show(stored(tmp_path, rows), FACTS, {}) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["steps", "ratio", "1.2", "<=", "1.1", "MISSED"] in lines
    assert ["steps", "share", "0.8", ">=", "0.75", "met"] in lines


@pytest.mark.parametrize(
    ("rows", "ended"), [([{"what": "x", "value": None, "unit": "", "error": "OSError: no"}], {}), ([], {"steps": "ended with 1"})]
)
def test_what_failed_is_told_and_fails(rows, ended, tmp_path, capsys):
    assert table.show(stored(tmp_path, rows), FACTS, ended) == 1
    assert ("OSError: no" if rows else "ended with 1") in capsys.readouterr().out


def part_at(path, monkeypatch, facts):
    monkeypatch.setattr(sys, "argv", ["part", "--device", "cpu", "--file", str(path), "--facts", json.dumps(facts)])
    return Part("steps")


def test_a_part_goes_on_after_what_it_has_and_measures_what_failed_again(tmp_path, monkeypatch):
    path = tmp_path / "steps.json"
    first = part_at(path, monkeypatch, FACTS)
    with first.about("one") as wanted:
        assert wanted
        first.row("one", 1.0)
    with first.about("two") as wanted:
        assert wanted
        raise RuntimeError("out of luck\n")
    assert [row["what"] for row in first.rows] == ["one", "two"]
    assert first.rows[1]["error"] == "RuntimeError: out of luck"
    second = part_at(path, monkeypatch, FACTS)
    with second.about("one") as wanted:
        assert not wanted
    with second.about("two") as wanted:
        assert wanted
    assert part_at(path, monkeypatch, FACTS | {"commit": "def"}).rows == []
