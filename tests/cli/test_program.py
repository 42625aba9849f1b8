"""The installed program, `bigbatch`, rather than `python -m bigbatch`."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S


@pytest.mark.slow
def test_two_workers_say_nothing_beside_the_result(tmp_path):
    program = Path(sys.executable).with_name("bigbatch")
    command = [program, "train", "digits/mlp", "--workers", "2", "--set", "budget.epochs=1", "--out", tmp_path / "run", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("digits/mlp: test accuracy ")
