"""Launch workers on this machine, monitor them, report which worker died and why, and restart them.

On several machines, use `torchrun -m bigbatch train ...`. On one machine this launcher replaces torchrun's elastic agents, which poll once
a second, import torch in each agent, kill a worker 30 s after asking it to save, and do not report which worker died. This launcher
imports torch and the trainer once and forks the workers, which takes one second instead of five.

With a fixed number of workers, the job ends when one of them dies. With a range "2:4", the maximum is started; when workers die, the
remaining number, but at least the minimum, is restarted at once from the last checkpoint.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from bigbatch.comm.launch.exit_status import describe_exit, is_stopped, name_workers, oom_kills
from bigbatch.core.checks import UserError
from bigbatch.core.environment import JOB, LAUNCHER, read_variable, timeout_s
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.signals import STOPS, caught
from bigbatch.core.storage.saved import Saved

MAX_RESTARTS_WITHOUT_CHECKPOINT = 10
"""Most consecutive restarts of the workers without a new checkpoint."""
POLL_S = 0.05
GRACE_S = 4.0
"""Seconds that the other workers have to exit once one has."""
REPORT_GRACE_S = 30.0
"""Seconds that worker 0 has to report the reason, once another worker has exited with an error."""
SIGNAL_DEBOUNCE_S = 1.0
"""A terminal's Ctrl-C reaches the launcher and the workers, and the launcher forwards it: within this time, it counts as one."""

THREADS = "OMP_NUM_THREADS"
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""1: torch asks NVML whether there are GPUs, and does not initialise CUDA, which forked processes could then not use."""
REPORTED = (1, 2, 3, 130)
"""Exit codes of a worker that has reported its error; the job ends with the same code."""
LOST_WORKERS = 4
"""Exit code of a worker that lost the connection to others, and of a job that lost workers."""
STOPPED = ({-number for number in STOPS} | {128 + number for number in STOPS}) - set(REPORTED)
"""Exit codes of processes that were stopped by a signal before they could handle it."""
_watched = False


class Workers(NamedTuple):
    """The number of workers: fixed, or a range for an elastic job."""

    minimum: int
    maximum: int

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """From "4" or "2:4".

        Raises:
            UserError: If the text is neither.

        >>> Workers.parse("4"), Workers.parse("2:4")
        (Workers(minimum=4, maximum=4), Workers(minimum=2, maximum=4))
        """
        minimum, colon, maximum = text.partition(":")
        try:
            workers = cls(int(minimum), int(maximum) if colon else int(minimum))
        except ValueError:
            workers = cls(0, 0)
        if not 1 <= workers.minimum <= workers.maximum:
            raise UserError(f"--workers {text}: must be a number such as 4, or a range such as 2:4")
        return workers

    @property
    def elastic(self) -> bool:
        """Whether the number may change during the run."""
        return self.minimum < self.maximum


def launch(run: Callable[[], None], workers: Workers, saved: Saved, *, prepare: Callable[[], object]) -> int:
    """Run a function in several worker processes on this machine and wait for them.

    Args:
        run: Called in each worker, with RANK, WORLD_SIZE and so on in the environment.
        workers: Number of workers.
        saved: Where the run saves its checkpoints, and its command.
        prepare: Imports the modules that workers need, once in this process; the modules must not be imported before.

    Returns:
        Exit code of the job.

    Raises:
        UserError: If this process has initialised CUDA.
    """
    os.environ |= {JOB: os.environ.get(JOB, uuid.uuid4().hex), THREADS: threads_per_worker(workers.maximum), LAUNCHER: str(os.getpid())}
    _set_gloo_interface()
    worker_environment, os.environ[NVML] = {NVML: os.environ.get(NVML, "0")}, "1"
    prepare()  # after the environment is set: libraries read the number of threads when they are imported
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        raise UserError(
            "this process has initialised CUDA, so workers forked from it cannot use a GPU; start the workers first, or use torchrun"
        )
    return _Job(run, workers, saved, worker_environment).run()


def threads_per_worker(num_workers: int) -> str:
    """OMP_NUM_THREADS of a worker: the value of this environment, else the cores divided by the workers."""
    return os.environ.get(THREADS) or str(max(1, usable_cores() // num_workers))


class _GroupExit(NamedTuple):
    """How the workers of one (re)start exited."""

    codes: dict[int, int]  # by rank, in the order of exit; without exit code 0
    unresponsive: list[int]  # ranks that did not exit and must be killed
    stopped: bool  # whether these were stopped by SIGSTOP or a debugger

    @property
    def died(self) -> list[int]:
        """Ranks that died: they exited without reporting an error."""
        return [rank for rank, code in self.codes.items() if code not in (*REPORTED, LOST_WORKERS)]


class _Job:
    """A job: its workers and their restarts."""

    def __init__(self, run: Callable[[], None], workers: Workers, saved: Saved, environment: dict[str, str]) -> None:
        self.run_worker, self.requested, self.saved, self.environment = run, workers, saved, environment
        kind = "fork" if sys.platform == "linux" else "spawn"
        self.context: Any = multiprocessing.get_context(
            kind
        )  # fork is safe: this process runs no user code and no threads, and has not initialised CUDA
        self.stopped_at, self.stop_at_once = 0.0, False
        self.oom_kills = oom_kills()

    def run(self) -> int:
        """Start the workers, and restart them until the job has ended."""
        number, restarts, restarts_without_checkpoint = self.requested.maximum, 0, 0
        with caught(self._stop):
            while True:
                reached = self.saved.reached()
                end = self._run_workers(number, restarts)
                if (code := self._exit_code(end, number)) is not None:
                    return code
                reason = self._reason(end, number)
                restarts, restarts_without_checkpoint = (
                    restarts + 1,
                    0 if self.saved.reached() != reached else restarts_without_checkpoint + 1,
                )
                if not self.requested.elastic or self.stopped_at or restarts_without_checkpoint == MAX_RESTARTS_WITHOUT_CHECKPOINT:
                    times = (
                        f", for the {restarts_without_checkpoint}th time without a checkpoint in between"
                        if restarts_without_checkpoint == MAX_RESTARTS_WITHOUT_CHECKPOINT
                        else ""
                    )
                    return _report("lost", f"{reason}{times}; {self.saved.in_words()}", LOST_WORKERS)
                number = max(self.requested.minimum, number - len(end.died or end.unresponsive))
                _report("lost", f"{reason}; continuing with {number} from the last checkpoint", LOST_WORKERS)

    def _exit_code(self, end: _GroupExit, number: int) -> int | None:
        """Exit code of the job, if the workers exited in an orderly way; None if workers were lost."""
        if self.stop_at_once:
            return _report("interrupted", f"stopped at once; {self.saved.in_words()}", 130)
        if not end.codes and not end.unresponsive:
            return 0
        first = next((code for code in end.codes.values() if code != LOST_WORKERS), LOST_WORKERS)
        if self.stopped_at and first in STOPPED:
            return _report("interrupted", f"stopped before the first update; {self.saved.in_words()}", 130)
        if 130 in end.codes.values() and (self.stopped_at or first == 130):
            if 0 not in end.codes:  # only another worker got the signal, before the ranks could agree to stop
                _report("interrupted", f"{name_workers(list(end.codes), of=number)} stopped; {self.saved.in_words()}", 130)
            return 130
        return first if first in REPORTED else None

    def _reason(self, end: _GroupExit, number: int) -> str:
        limit = f"{timeout_s():g} s (BIGBATCH_TIMEOUT_S)"
        if end.died:
            first, *others = end.died
            too = f", {name_workers(others)} died too" if others else ""
            return f"{name_workers([first], of=number)} {describe_exit(end.codes[first], self.oom_kills)}{too}"
        if end.unresponsive:
            why = "was stopped (SIGSTOP, or a debugger)" if end.stopped else "did not respond"
            return f"{name_workers(end.unresponsive, of=number)} {why} for {limit}"
        return f"workers lost their connections, but none of them died: a connection broke, or a worker paused for {limit}"

    def _run_workers(self, number: int, restarts: int) -> _GroupExit:
        """Start a number of workers, and wait until all have exited."""
        with reserved_ports(1) as (port,):
            shared = self.environment | {
                "WORLD_SIZE": str(number),
                "LOCAL_WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
            }
            processes: list[BaseProcess] = []
            try:
                for rank in range(number):
                    own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    processes.append(self.context.Process(target=_run_worker, args=(self.run_worker, own), name=f"worker {rank}"))
                    processes[-1].start()
                return self._watch(processes)
            finally:
                for process in processes:
                    process.kill()
                    process.join()

    def _watch(self, processes: list[BaseProcess]) -> _GroupExit:
        codes: dict[int, int] = {}
        signalled: set[int | None] = set()
        first_exit = 0.0
        while True:
            now = {rank: process.exitcode for rank, process in enumerate(processes)}
            ended = [(rank, code) for rank, code in now.items() if code and rank not in codes]
            codes |= sorted(
                ended, key=lambda item: item[1] == LOST_WORKERS
            )  # of simultaneous exits: dead workers before those that lost them
            alive = [rank for rank, code in now.items() if code is None]
            if not alive or self.stop_at_once:
                return _GroupExit(codes, [], stopped=False)
            connection.wait([processes[rank].sentinel for rank in alive], POLL_S)
            if self.stopped_at:
                for process in processes:
                    if process.exitcode is None and process.pid not in signalled:
                        os.kill(process.pid or 0, signal.SIGTERM)
                        signalled.add(process.pid)
            if not codes:
                continue
            first_exit = first_exit or time.monotonic()
            passed_s = time.monotonic() - first_exit
            only_lost = set(codes.values()) == {LOST_WORKERS}
            if only_lost and passed_s > SIGNAL_DEBOUNCE_S and all(is_stopped(processes[rank].pid or 0) for rank in alive):
                return _GroupExit(codes, alive, stopped=True)
            if passed_s > (REPORT_GRACE_S if 0 in alive and next(iter(codes.values())) in REPORTED else GRACE_S):
                return _GroupExit(codes, alive, stopped=False)

    def _stop(self, number: int) -> None:
        """Signal handler: `_watch` forwards the signal, and workers save and exit; after a second Ctrl-C they are killed."""
        now = time.monotonic()
        self.stop_at_once = self.stop_at_once or (number == signal.SIGINT and 0 < self.stopped_at < now - SIGNAL_DEBOUNCE_S)
        self.stopped_at = self.stopped_at or now


def _run_worker(run: Callable[[], None], environment: dict[str, str]) -> None:
    os.environ |= environment
    run()


def _report(label: str, text: str, code: int) -> int:
    print(f"{label}: {text}\n", end="", file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Free ports, reserved by binding them with SO_REUSEADDR but not listening: a server can bind them, and again after a restart."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


def watch_launcher() -> None:
    """Exit this process when its launcher is gone: an orphaned worker would train on, unnoticed, and hold its port and memory.

    Does nothing in a process without a launcher, and nothing in a second call.
    """
    global _watched
    if _watched or not {LAUNCHER, "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    _watched = True
    launcher = read_variable(LAUNCHER, os.getppid())

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch launcher").start()


def _set_gloo_interface() -> None:
    """Let gloo use loopback: by default it resolves the host's name, which may have no address."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
