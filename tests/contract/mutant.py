"""Tests against a copy of the package, in a forked process: what is slow to import and the same for all copies is there already.

Nothing here imports the package itself: the first to do so is the fork, which finds the copy.
"""

import gc
import os
import sys
from pathlib import Path
from typing import NamedTuple

from tests import forks
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
SLOW = [
    *("torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.func", "torch._dynamo", "scipy.optimize", "scipy.stats"),
    *("pydantic", "filelock", "jinja2", "matplotlib.figure", "sklearn.datasets", "tomli_w", "pytest", "hypothesis"),
]
PYTEST = ["-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
"""The warning is that hypothesis was imported before pytest could rewrite it, which takes longer than most files of tests."""
PLUGINS = ["no:cacheprovider", "no:xdist", "no:anyio"]


class _Process(forks._Process):
    """Of a server of its own: multiprocessing's may have imported the package for others who use it."""

    server = forks.Server(*SLOW)


class Done(NamedTuple):
    """What came of a run of pytest."""

    returncode: int | None  # None: it took too long
    output: str
    red: str = ""  # name of the first test that failed


class _Red:
    """A plugin of pytest that writes down which test failed first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and report.when == "call" and not self.path.exists():
            self.path.write_text(report.nodeid.partition("::")[2])


def run_tests_against(copy: Path, test: str) -> Done:
    """Run a file of tests, or one test as `file::name`, against `copy`/bigbatch."""
    output, red = copy / "output.txt", copy / "red.txt"
    red.unlink(missing_ok=True)
    process = _Process(target=_run, args=(copy, test, output, red))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        return Done(None, output.read_text())
    return Done(process.exitcode, output.read_text(), red.read_text() if red.exists() else "")


def _run(copy: Path, test: str, output: Path, red: Path) -> None:
    assert "bigbatch" not in sys.modules
    gc.freeze()  # what was imported before stays: pytest collects garbage at its end
    os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    arguments = [*PYTEST, *(word for plugin in PLUGINS for word in ("-p", plugin)), str(ROOT / "tests" / test)]
    sys.exit(int(pytest.main(arguments, plugins=[_Red(red)])))
