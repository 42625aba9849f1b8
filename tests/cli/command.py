"""The command `bigbatch` in a process of its own."""

import os
import subprocess
import sys

from tests.limits import LIMIT_S


def bigbatch(*arguments, cwd=None, expect=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "bigbatch", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done
