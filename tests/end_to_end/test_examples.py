import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.forks import Program
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    program = Program([path], environment=os.environ, folder=tmp_path, warnings="error")
    assert program.wait(LIMIT_S) == 0, program.said()
    assert program.printed()


@pytest.mark.slow
def test_own_task_on_the_command_line(tmp_path):
    (tmp_path / "own_task.py").write_text((ROOT / "examples" / "own_task.py").read_text())
    subprocess.run([sys.executable, "own_task.py"], cwd=tmp_path, check=True, timeout=LIMIT_S, capture_output=True)
    command = [
        "-m",
        "bigbatch",
        "scale",
        "own_task:Wine",
        "--recipe",
        "wine.toml",
        "--to",
        "32",
        "--seeds",
        "2",
        "--max-seeds",
        "2",
        "--quiet",
    ]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "batch only at 32" in done.stdout
    assert (tmp_path / "runs/scale/own_task-Wine/report.html").exists()


@pytest.mark.slow
def test_the_demo_falls_back_to_digits_where_there_is_no_fashion_mnist(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BIN": str(Path(sys.executable).parent), "OUT": str(tmp_path / "demo")}
    environment |= {"SEEDS": "2", "MAX_SEEDS": "2", "BIGBATCH_DATA": str(tmp_path / "empty"), "BIGBATCH_CACHE": str(tmp_path / "cache")}
    demo = ["sh", str(ROOT / "examples" / "demo.sh")]
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "Fashion-MNIST is not at hand, so the demo runs digits/mlp instead" in done.stdout
    assert "not found; tried" in done.stdout
    assert (tmp_path / "demo" / "report.html").exists()
