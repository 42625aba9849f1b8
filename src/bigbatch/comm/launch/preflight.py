"""Start N workers on this machine and time what they do to one another: exchanges, and matrix products side by side."""

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
REMEDY = "mend what it says, or try fewer workers"


@dataclass(frozen=True)
class AllReduceTimings:
    """Seconds of each round of an all-reduce of `num_bytes`, each of the rank that took longest."""

    num_bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class WorkerTimings:
    """What N workers measured.

    Attributes:
        workers: How many there were.
        backend: gloo or nccl.
        threads: CPU threads of each.
        alone_gflops: Speed of float32 matrix products of one worker while the others wait, 10^9 operations per second.
        together_gflops: The same of each worker, all at once.
        latency_s: Seconds of one message of four bytes from rank 0 to rank 1.
        all_reduce: Times at 4 kB to 16 MB.
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
        """How many times one worker's speed all of them reach at once; N where the machine has the cores."""
        return sum(self.together_gflops) / self.alone_gflops

    @property
    def seconds(self) -> dict[int, tuple[float, ...]]:
        """Bytes to the times of all rounds."""
        return {each.num_bytes: each.seconds for each in self.all_reduce}


def measure_workers(workers: int, *, threads: int = 1, backend: str = "gloo", timeout_s: float = 60.0) -> WorkerTimings:
    """Start workers as processes that meet over loopback, measure, and end them all.

    gloo takes the interface that `GLOO_SOCKET_IFNAME` names, else loopback. Workers meet through a file, so no fixed port is used.

    Args:
        workers: N, at least 2.
        threads: CPU threads of each worker.
        backend: gloo, or nccl with a GPU for each worker.
        timeout_s: Longest wait for all of them.

    Returns:
        The measurements; takes about 3 seconds after torch is imported.

    Raises:
        UserError: If there are fewer than two workers, or a worker fails or does not answer in time; says which rank, and its last words.
    """
    if workers < 2:
        raise UserError(f"workers = {workers}: an exchange needs two at least; give 2 or more")
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
    """Run one program a rank to the end, and leave none behind whatever happens.

    Args:
        programs: One command line a rank.
        folder: For what they print.
        timeout_s: Longest wait for all of them.

    Returns:
        What each rank printed to its standard output.

    Raises:
        UserError: If a rank fails, or any still runs when time is up; names the first that failed, or the one that got least far.
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
                rank = min(failed, key=lambda r: codes[r] or 0)  # one that a signal ended (below zero) is the cause, not the consequence
                raise UserError(f"worker of rank {rank} of {len(ranks)} {_how(codes[rank] or 0)}: {_last(words[rank])}; {REMEDY}")
            if time.monotonic() > end:
                rank = min((r for r, code in enumerate(codes) if code is None), key=lambda r: len(logs[r].read_text()))
                stage = f"last it {_last(logs[rank])}" if logs[rank].stat().st_size else "it never started"
                raise UserError(f"worker of rank {rank} of {len(ranks)}: no answer in {timeout_s:g} s, {stage}; {REMEDY}")
            time.sleep(0.02)
    finally:
        for r in ranks:
            r.kill()
        for r in ranks:
            r.communicate()
    return [log.read_text() for log in logs]


def _environment() -> dict[str, str]:
    """This package on the path, and gloo on loopback unless told otherwise: a preflight must not depend on the host's name."""
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    interface = {"GLOO_SOCKET_IFNAME": loopback} if loopback else {}
    return {**interface, **os.environ, "PYTHONPATH": paths}


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _last(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
