"""A run that is killed at any point ends in exactly the weights of one that never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_twenty_kills_change_no_bit(tmp_path):
    seed = 20260701
    print(f"seed {seed}")
    program = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(seed)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["killed"] == {"anywhere": 10, "mid-write": 10}
    assert got["updates"] == sorted(got["updates"])  # no kill ever lost a checkpoint
    assert len(set(got["updates"])) >= 10  # kills fell between updates too, not only before the first
    assert got["codes"] == [0, 0]
    assert got["same"] == {"model": True, "optimizer": True, "workers": True}
    assert got["same_losses"]
