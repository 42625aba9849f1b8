"""The kernels without a GPU: run by triton's interpreter, and compiled for two GPUs; each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not (sys.platform == "linux" and os.uname().machine == "x86_64"),
    reason="triton can't be installed here: its wheels are for Linux on x86_64",
)


def run_file(name, *more, **environment):
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *more, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


METHODS = ["LARS", "LAMB", "AdamP", "SGDP"]


@pytest.mark.parametrize("tests", [*METHODS, f"not ({' or '.join(METHODS)})"])
def test_by_the_interpreter(tests, tmp_path):
    run_file("kernels_interpreted.py", "-k", f"{tests} and not wrong_line", TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_wrong_lines_show(method, tmp_path):
    run_file("kernels_interpreted.py", "-k", f"{method} and wrong_line", TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_by_the_compiler(method, tmp_path):
    run_file("kernels_compiled.py", "-k", method, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
