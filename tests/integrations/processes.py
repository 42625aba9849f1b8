"""A module's `main` on two processes under torchrun, over gloo on loopback; none is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.limits import LIMIT_S

import bigbatch

ROOT = Path(__file__).resolve().parents[2]


def torchrun(module, *arguments, folder):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, Path(bigbatch.__file__).parents[1])))
    program = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = program.communicate(timeout=LIMIT_S / 2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, said
