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


def test_by_the_interpreter(tmp_path):
    run_file("kernels_interpreted.py", "-k", "not wrong_line", TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


def test_by_the_interpreter_wrong_lines_show(tmp_path):
    run_file("kernels_interpreted.py", "-k", "wrong_line", TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


def test_by_the_compiler(tmp_path):
    run_file("kernels_compiled.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
