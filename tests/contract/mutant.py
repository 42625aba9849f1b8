"""Tests against a copy of the package, in a forked process: what is slow to import and the same for all copies is there already.

Nothing here imports the package itself: the first to do so is the fork, which finds the copy.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
SLOW = ["torch", "torch.distributed.tensor", "torch.func", "torch._dynamo", "scipy.optimize", "scipy.stats", "pydantic"]
"""No plugin of pytest, and nothing of which it rewrites the assertions."""


class Done(NamedTuple):
    """What came of a run of pytest."""

    returncode: int | None  # None: it took too long
    output: str


def run_tests_against(copy: Path, test: str) -> Done:
    """Run a file of tests against `copy`/bigbatch."""
    forks, output = multiprocessing.get_context("forkserver"), copy / "output.txt"
    forks.set_forkserver_preload(SLOW)
    process = forks.Process(target=_run, args=(copy, test, output))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        return Done(None, output.read_text())
    return Done(process.exitcode, output.read_text())


def _run(copy: Path, test: str, output: Path) -> None:
    assert "bigbatch" not in sys.modules
    os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(ROOT / "tests" / test)])))
