"""Run a script as several gloo processes on loopback, within a bounded time, leaving none behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist
from tests.forks import SERVER, Program, python_path
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


def meet(count=None):
    """Wait until so many ranks are here, all if left out: one that leaves early closes connections, on which others still post receives."""
    store = dist.distributed_c10d._get_default_store()
    if store.add("met", 1) == (count or dist.get_world_size()):
        store.set("all met", "")
    store.wait(["all met"])


def leave():
    """How a rank ends well: gloo's threads may still want Python's lock to let go of tensors, and abort if Python is gone by then."""
    sys.stdout.flush()
    os._exit(0)


def _start(arguments, environment, log):
    """Forked where the fork server has imported what the rank would; else a process of its own, as for another copy of the package."""
    if SERVER.suits(environment):
        return Program(arguments, environment=environment, log=log, warnings="ignore")
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-W", "ignore", *map(str, arguments)], env=environment, stdout=file, stderr=file)


def run_ranks(script, world, folder, *arguments, timeout_s=LIMIT_S):
    """Start `world` processes of a script, see forks.py; it finds RANK, WORLD_SIZE and STORE (a file) in its environment.

    Raises:
        AssertionError: With the output of the ranks that failed, or if time ran out.
    """
    shared = {**os.environ, "WORLD_SIZE": str(world), "STORE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = python_path(os.environ)
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            log.unlink(missing_ok=True)
            ranks.append(_start([script, *arguments], {**shared, "RANK": str(rank)}, log))
        end = time.monotonic() + timeout_s
        while any(r.poll() is None for r in ranks) and time.monotonic() < end:
            if any(r.poll() not in (None, 0) for r in ranks):
                time.sleep(1)
                break
            time.sleep(0.05)
        codes = [r.poll() for r in ranks]
        assert codes == [0] * world, f"exit codes {codes}\n" + "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)
    finally:
        for r in ranks:
            r.kill()
            r.wait()
    return [log.read_text() for log in logs]
