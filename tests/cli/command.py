"""The command `bigbatch` in a process of its own."""

import os
import subprocess
import sys

from tests.forks import SERVER, Program
from tests.limits import LIMIT_S


def bigbatch(*arguments, cwd=None, expect=0, **environment):
    """Forked, see forks.py, unless a variable differs that is read at the start of an interpreter or library."""
    command = ["-m", "bigbatch", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if SERVER.suits(environment):
        done = forked(command, cwd, environment)
    else:
        start = [sys.executable, *command]
        done = subprocess.run(start, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def forked(command, cwd, environment):
    program = Program(command, environment=environment, folder=cwd)
    try:
        return subprocess.CompletedProcess(command, program.wait(LIMIT_S), *program.communicate())
    finally:
        program.kill()
