"""Starts the workers of a run on this machine, waits a bounded time, and leaves no process behind."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bigbatch.check.arrangement import Setup
from bigbatch.check.probe import Probe
from bigbatch.check.watch import Record
from bigbatch.check.worker import OUTPUT, STUCK, Failure, run_worker
from bigbatch.comm.launch.exit_status import describe_exit, oom_kills
from bigbatch.core.checks import RunFailed

POLL_S = 0.2
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
UNEQUAL = "do all workers make as many updates, and call the same collectives?"
GRACE_S = 1.0
"""After the time limit, for workers to write where they stand; after a failure, for others to tell theirs."""
IMPORTED_LATE = ("torch._dynamo", "torch.nn.parallel", "torch.distributed.nn.jit.templates.remote_module_template")
"""What torch imports at a first optimizer or wrapper: here once, not for seconds in every process that is forked."""
Function = Callable[[Probe], Any]


class LoopFailed(RunFailed):
    """The loop raised an error in a worker, which is its `failure`."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


def run(function: Function, setup: Setup, *, time_limit_s: float, name: str) -> list[Record]:
    """Run the loop in one arrangement, one process per worker, over gloo on loopback.

    Args:
        function: The loop.
        setup: How it is arranged.
        time_limit_s: For all workers together.
        name: Of the loop, for messages.

    Returns:
        What each worker did, by rank.

    Raises:
        LoopFailed: If the loop raised an error.
        RunFailed: If a worker died, or time was over.
    """
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    kill_count = oom_kills()
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    answers, processes = [], []
    with _loopback(), tempfile.TemporaryDirectory(prefix="bigbatch-") as folder:
        try:
            for rank in range(setup.arrangement.workers):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (function, setup, rank, Path(folder), time_limit_s, theirs)
                processes.append(context.Process(target=run_worker, args=arguments, name=f"worker {rank}"))
                processes[-1].start()
                theirs.close()
                answers.append(ours)
            return _collect(answers, processes, Path(folder), setup, time_limit_s, name, kill_count)
        finally:
            for process in processes:
                _end(process)
            for each in answers:
                each.close()


def _collect(
    answers: list[Any], processes: list[Any], folder: Path, setup: Setup, time_limit_s: float, name: str, kill_count: int | None
) -> list[Record]:
    end = time.monotonic() + time_limit_s
    records: dict[int, Record] = {}
    failures: dict[int, Failure | None] = {}  # None: it died
    while len(records) + len(failures) < len(answers):
        if time.monotonic() > end:
            break
        waiting = [each for rank, each in enumerate(answers) if rank not in records and rank not in failures]
        for rank in [answers.index(each) for each in connection.wait(waiting, POLL_S)]:
            try:
                answer = answers[rank].recv()
            except EOFError:
                answer = None
            if isinstance(answer, Record):
                records[rank] = answer
            else:
                if not failures:
                    end = min(end, time.monotonic() + GRACE_S)
                failures[rank] = answer
    if failures:
        _raise(failures, processes, folder, setup, name, kill_count)
    if len(records) < len(answers):
        time.sleep(GRACE_S)
        late = min(set(range(len(answers))) - set(records))
        others = f"; worker {min(records)} was done: {UNEQUAL}" if records else ""
        stood = _stood(folder / STUCK.format(late))
        raise RunFailed(
            f"{name} at {setup.arrangement}: worker {late} was not done after {time_limit_s:g} s{stood}{others}; "
            "make the loop shorter, or give more time (--time-limit)"
        )
    return [records[rank] for rank in range(len(answers))]


def _raise(
    failures: dict[int, Failure | None], processes: list[Any], folder: Path, setup: Setup, name: str, kill_count: int | None
) -> None:
    at = f"{name} at {setup.arrangement}"
    for rank, failure in failures.items():
        if failure is None:  # one that died is the cause, not a consequence
            processes[rank].join(GRACE_S)
            how = describe_exit(processes[rank].exitcode or 0, kill_count)
            raise RunFailed(f"{at}: worker {rank} {how}{_last(folder / OUTPUT.format(rank))}; mend the loop, and check it again")
    raised = {rank: failure for rank, failure in failures.items() if failure is not None}
    rank, failure = min(raised.items(), key=lambda item: is_lost_peer(item[1].error))  # the first that is no consequence
    gpu = "; the check runs on the CPU: use the device of probe.device" if "CUDA" in failure.error or "NVIDIA" in failure.error else ""
    where = f" ({failure.where})" if failure.where else ""
    done = sorted(set(range(setup.arrangement.workers)) - set(failures))
    others = f"; worker {done[0]} was done: {UNEQUAL}" if done and is_lost_peer(failure.error) else ""
    raise LoopFailed(f"{at}: worker {rank} raised {failure.error}{where}{gpu}{others}", failure)


def is_lost_peer(error: str) -> bool:
    """Whether a worker failed because another one was gone, in gloo's words: which ones is a matter of time.

    >>> is_lost_peer("RuntimeError: Read error [127.0.0.1]:10946: Connection reset by peer"), is_lost_peer("ValueError: shapes")
    (True, False)
    """
    return any(words in error for words in LOST_PEER)


def _end(process: Any) -> None:
    """End a worker and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _last(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return f", after printing {lines[-1]!r}" if lines else ""


def _stood(path: Path) -> str:
    """Where a worker stood: the last line outside libraries that Python's fault handler wrote of its main thread."""
    threads = path.read_text(errors="replace").split("\n\n") if path.exists() else []
    lines = [
        line.strip() for thread in threads for line in thread.splitlines() if line.strip().startswith("File ") and "Current" not in line
    ]
    own = [line for line in lines if "/torch/" not in line and "/bigbatch/check/" not in line and "/bigbatch/comm/" not in line]
    own = [line for line in own if "threading.py" not in line]
    return f", at {Path(own[0].split(chr(34))[1]).name}, {own[0].split(', ')[1].partition(' in ')[0]}" if own else ""


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let gloo use loopback: by default it resolves the host's name, which may have no address."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    added = name is not None and "GLOO_SOCKET_IFNAME" not in os.environ
    if added:
        os.environ["GLOO_SOCKET_IFNAME"] = str(name)
    try:
        yield
    finally:
        if added:
            del os.environ["GLOO_SOCKET_IFNAME"]
