"""Preflight test: start N workers on this machine and time all-reduces, messages, and matrix products in parallel."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigbatch.core.checks import UserError, check_positive

WORKER = ("-P", "-m", "bigbatch.comm.launch.preflight_worker")
REMEDY = "fix that error, or use fewer workers"


@dataclass(frozen=True)
class AllReduceTimings:
    """Seconds of each round of an all-reduce of `num_bytes`, of the slowest rank."""

    num_bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class WorkerTimings:
    """Measurements of N workers.

    Attributes:
        workers: Number of workers.
        backend: gloo or nccl.
        threads: CPU threads of each worker.
        alone_gflops: Speed of float32 matrix products of one worker while the others are idle, 10^9 operations per second.
        together_gflops: The same for each worker, all at the same time.
        latency_s: Seconds of one message of four bytes from rank 0 to rank 1.
        all_reduce: Timings for 4 kB to 16 MB.
    """

    workers: int
    backend: str
    threads: int
    alone_gflops: float
    together_gflops: tuple[float, ...]
    latency_s: float
    all_reduce: tuple[AllReduceTimings, ...]

    @property
    def speedup(self) -> float:
        """Total speed of all workers over the speed of one; N if the machine has enough cores."""
        return sum(self.together_gflops) / self.alone_gflops

    @property
    def seconds(self) -> dict[int, tuple[float, ...]]:
        """Seconds of all rounds, by number of bytes."""
        return {each.num_bytes: each.seconds for each in self.all_reduce}


def measure_workers(workers: int, *, threads: int = 1, backend: str = "gloo", timeout_s: float = 60.0) -> WorkerTimings:
    """Start worker processes, measure, and end them.

    gloo uses the interface of `GLOO_SOCKET_IFNAME`, else loopback. The rendezvous is a file, so no fixed port is needed.

    Args:
        workers: N, at least 2.
        threads: CPU threads of each worker.
        backend: gloo, or nccl with a GPU for each worker.
        timeout_s: Time-out for all workers together.

    Returns:
        The measurements; this takes about 3 seconds after torch is imported.

    Raises:
        UserError: If `workers` is below 2, or a worker fails or times out; the message has its rank and last line of output.
    """
    if workers < 2:
        raise UserError(f"workers = {workers}: must be at least 2; give more")
    check_positive("threads", threads)
    with tempfile.TemporaryDirectory(prefix="bigbatch-") as folder:
        settings = [str(workers), str(threads), str(timeout_s + 5), str(Path(folder) / "store"), backend]
        programs = [[sys.executable, *WORKER, str(rank), *settings] for rank in range(workers)]
        outputs = run_workers(programs, Path(folder), timeout_s=timeout_s)
    found = json.loads(outputs[0].splitlines()[-1])
    rounds = tuple(AllReduceTimings(each["num_bytes"], tuple(each["seconds"])) for each in found.pop("all_reduce"))
    together = tuple(found.pop("together_gflops"))
    return WorkerTimings(workers, backend, threads, together_gflops=together, all_reduce=rounds, **found)


def run_workers(programs: Sequence[Sequence[str]], folder: Path, *, timeout_s: float) -> list[str]:
    """Run one program per rank, and end all of them, also after an error.

    Args:
        programs: One command line per rank.
        folder: Folder for their output.
        timeout_s: Time-out for all workers together.

    Returns:
        The standard output of each rank.

    Raises:
        UserError: If a rank fails or times out; names the rank that failed first, or the one that made the least progress.
    """
    logs, words = ([folder / f"rank-{rank}.{kind}" for rank in range(len(programs))] for kind in ("out", "err"))
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for program, log, word in zip(programs, logs, words, strict=True):
            with log.open("w") as out, word.open("w") as err:
                ranks.append(subprocess.Popen(program, env=_environment(), stdin=subprocess.PIPE, stdout=out, stderr=err))
        end = time.monotonic() + timeout_s
        while (codes := [r.poll() for r in ranks]) != [0] * len(ranks):
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                rank = min(failed, key=lambda r: codes[r] or 0)  # a rank killed by a signal (negative) is the cause, not a consequence
                raise UserError(f"worker of rank {rank} of {len(ranks)} {_how(codes[rank] or 0)}: {_last(words[rank])}; {REMEDY}")
            if time.monotonic() > end:
                rank = min((r for r, code in enumerate(codes) if code is None), key=lambda r: len(logs[r].read_text()))
                stage = f"last stage: {_last(logs[rank])}" if logs[rank].stat().st_size else "it did not start"
                raise UserError(f"worker of rank {rank} of {len(ranks)}: timed out after {timeout_s:g} s, {stage}; {REMEDY}")
            time.sleep(0.02)
    finally:
        for r in ranks:
            r.kill()
        for r in ranks:
            r.communicate()
    return [log.read_text() for log in logs]


def _environment() -> dict[str, str]:
    """Environment with this package on the path, and gloo on loopback by default, so that the host's name need not resolve."""
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    interface = {"GLOO_SOCKET_IFNAME": loopback} if loopback else {}
    return {**interface, **os.environ, "PYTHONPATH": paths}


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _last(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
