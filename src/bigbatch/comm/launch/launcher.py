"""Start workers on this machine, and see them through: who died, of what, and how the run goes on.

`torchrun -m bigbatch train ...` does the starting on several machines. On one, its elastic agents were used before: they looked for one
another once a second, each brought torch along, killed a worker 30 s after asking it to save, and didn't say who had died. Here the
launcher imports torch and the trainer once, and workers are forked from it, in a second where an interpreter of their own took five.

A fixed number of workers ends when one of them dies. With a range "2:4", the larger number is started; when some die, the run goes on at
once from its last checkpoint with those that are left, or with the smaller number, for which dead ones are replaced.
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
from bigbatch.core.cores import usable_cores
from bigbatch.core.environment import JOB, LAUNCHER, read_variable, timeout_s
from bigbatch.core.saved import Saved
from bigbatch.core.signals import STOPS, caught

MAX_RESTARTS_WITHOUT_CHECKPOINT = 10
"""Times in a row that the group may be started anew without a checkpoint in between."""
POLL_S = 0.05
GRACE_S = 4.0
"""Seconds that workers have to end once the job has."""
REPORT_GRACE_S = 30.0
"""Seconds that the first worker has to say why, where another ended first."""
SIGNAL_DEBOUNCE_S = 1.0
"""A terminal's Ctrl-C reaches launcher and workers alike, and is handed on besides: within this, it is one."""

THREADS = "OMP_NUM_THREADS"
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""1: torch asks NVML whether there are GPUs, and does not initialise CUDA, which no process can use that is forked afterwards."""
REPORTED = (1, 2, 3, 130)
"""Exit codes of a worker that ended by itself and has said why; the job ends with it."""
LOST_WORKERS = 4
"""Exit code of a worker that lost others, and of a job that lost workers."""
STOPPED = ({-number for number in STOPS} | {128 + number for number in STOPS}) - set(REPORTED)
"""Exit codes of processes that were asked to stop before they could do so by themselves."""
_watched = False


class Workers(NamedTuple):
    """How many workers: a number, or as many as there are within a range."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """From "4" or "2:4".

        Raises:
            UserError: If it is neither.

        >>> Workers.parse("4"), Workers.parse("2:4")
        (Workers(least=4, most=4), Workers(least=2, most=4))
        """
        least, colon, most = text.partition(":")
        try:
            workers = cls(int(least), int(most) if colon else int(least))
        except ValueError:
            workers = cls(0, 0)
        if not 1 <= workers.least <= workers.most:
            raise UserError(f"--workers {text}: must be a number such as 4, or a range such as 2:4; give one of them")
        return workers

    @property
    def elastic(self) -> bool:
        """Whether the number may change during the run."""
        return self.least < self.most


def launch(run: Callable[[], None], workers: Workers, saved: Saved, *, prepare: Callable[[], object]) -> int:
    """Run something as several workers on this machine and wait for the end.

    Args:
        run: What a worker does, once its environment says which one it is.
        workers: How many.
        saved: Where the run saves, and its command.
        prepare: Imports what workers need, once for all of them; not before this is called.

    Returns:
        Exit code of the job.

    Raises:
        UserError: If this process has used a GPU.
    """
    os.environ |= {JOB: os.environ.get(JOB, uuid.uuid4().hex), THREADS: threads_per_worker(workers.most), LAUNCHER: str(os.getpid())}
    _set_gloo_interface()
    of_workers, os.environ[NVML] = {NVML: os.environ.get(NVML, "0")}, "1"
    prepare()  # libraries read the number of threads when they are imported
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        raise UserError("this process has used a GPU: workers that are forked from it can't; start them first, or by torchrun")
    return _Job(run, workers, saved, of_workers).run()


def threads_per_worker(num_workers: int) -> str:
    """Threads of a worker, where the environment doesn't say: its share of the cores."""
    return os.environ.get(THREADS) or str(max(1, usable_cores() // num_workers))


class _GroupExit(NamedTuple):
    """How a group of workers ended."""

    codes: dict[int, int]  # of those that ended by themselves, by rank, the first first; without exit code 0
    silent: list[int]  # had to be ended
    halted: bool  # and were stopped by a signal

    @property
    def died(self) -> list[int]:
        """Ranks whose end nobody expected."""
        return [rank for rank, code in self.codes.items() if code not in (*REPORTED, LOST_WORKERS)]


class _Job:
    """The workers of a job, from one group to the next."""

    def __init__(self, run: Callable[[], None], workers: Workers, saved: Saved, environment: dict[str, str]) -> None:
        self.run_worker, self.asked, self.saved, self.environment = run, workers, saved, environment
        kind = "fork" if sys.platform == "linux" else "spawn"
        self.context: Any = multiprocessing.get_context(kind)  # nothing of the user's, no thread and no GPU was started in here
        self.stopped_at, self.at_once = 0.0, False
        self.oom_kills = oom_kills()

    def run(self) -> int:
        """One group of workers after the other, until the job has ended."""
        number, generation, in_vain = self.asked.most, 0, 0
        with caught(self._stop):
            while True:
                reached = self.saved.reached()
                end = self._group(number, generation)
                if (code := self._exit_code(end, number)) is not None:
                    return code
                what = self._what_happened(end, number)
                generation, in_vain = generation + 1, 0 if self.saved.reached() != reached else in_vain + 1
                if not self.asked.elastic or self.stopped_at or in_vain == MAX_RESTARTS_WITHOUT_CHECKPOINT:
                    times = (
                        f", for the {in_vain}th time without a checkpoint in between" if in_vain == MAX_RESTARTS_WITHOUT_CHECKPOINT else ""
                    )
                    return _report("lost", f"{what}{times}; {self.saved.in_words()}", LOST_WORKERS)
                number = max(self.asked.least, number - len(end.died or end.silent))
                _report("lost", f"{what}; going on with {number}, from the last checkpoint", LOST_WORKERS)

    def _exit_code(self, end: _GroupExit, number: int) -> int | None:
        """Of the job, where the workers ended by themselves; None where they were lost."""
        if self.at_once:
            return _report("interrupted", f"stopped at once; {self.saved.in_words()}", 130)
        if not end.codes and not end.silent:
            return 0
        first = next((code for code in end.codes.values() if code != LOST_WORKERS), LOST_WORKERS)
        if self.stopped_at and first in STOPPED:
            return _report("interrupted", f"stopped before the first update; {self.saved.in_words()}", 130)
        if 130 in end.codes.values() and (self.stopped_at or first == 130):
            if 0 not in end.codes:  # only another one was asked, before they could agree
                _report("interrupted", f"{name_workers(list(end.codes), of=number)} stopped; {self.saved.in_words()}", 130)
            return 130
        return first if first in REPORTED else None

    def _what_happened(self, end: _GroupExit, number: int) -> str:
        limit = f"{timeout_s():g} s (BIGBATCH_TIMEOUT_S)"
        if end.died:
            first, *others = end.died
            too = f", {name_workers(others)} died too" if others else ""
            return f"{name_workers([first], of=number)} {describe_exit(end.codes[first], self.oom_kills)}{too}"
        if end.silent:
            why = "was stopped (SIGSTOP, or a debugger)" if end.halted else "did not answer"
            return f"{name_workers(end.silent, of=number)} {why} for {limit}"
        return f"workers lost one another, and none of them died: a connection was cut, or one of them paused for {limit}"

    def _group(self, number: int, generation: int) -> _GroupExit:
        """Start some workers, and wait until all have ended."""
        with reserved_ports(1) as (port,):
            shared = self.environment | {
                "WORLD_SIZE": str(number),
                "LOCAL_WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RESTART_COUNT": str(generation),
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
        told: set[int | None] = set()
        began = 0.0
        while True:
            now = {rank: process.exitcode for rank, process in enumerate(processes)}
            ended = [(rank, code) for rank, code in now.items() if code and rank not in codes]
            codes |= sorted(ended, key=lambda item: item[1] == LOST_WORKERS)  # what was seen at once: who died, before those that lost it
            alive = [rank for rank, code in now.items() if code is None]
            if not alive or self.at_once:
                return _GroupExit(codes, [], halted=False)
            connection.wait([processes[rank].sentinel for rank in alive], POLL_S)
            if self.stopped_at:
                for process in processes:
                    if process.exitcode is None and process.pid not in told:
                        os.kill(process.pid or 0, signal.SIGTERM)
                        told.add(process.pid)
            if not codes:
                continue
            began = began or time.monotonic()
            passed_s = time.monotonic() - began
            only_lost = set(codes.values()) == {LOST_WORKERS}
            if only_lost and passed_s > SIGNAL_DEBOUNCE_S and all(is_stopped(processes[rank].pid or 0) for rank in alive):
                return _GroupExit(codes, alive, halted=True)
            if passed_s > (REPORT_GRACE_S if 0 in alive and next(iter(codes.values())) in REPORTED else GRACE_S):
                return _GroupExit(codes, alive, halted=False)

    def _stop(self, number: int) -> None:
        """Workers save and end, as they are told by `_watch`; at a second Ctrl-C they just end."""
        now = time.monotonic()
        self.at_once = self.at_once or (number == signal.SIGINT and 0 < self.stopped_at < now - SIGNAL_DEBOUNCE_S)
        self.stopped_at = self.stopped_at or now


def _run_worker(run: Callable[[], None], environment: dict[str, str]) -> None:
    os.environ |= environment
    run()


def _report(label: str, text: str, code: int) -> int:
    print(f"{label}: {text}\n", end="", file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Free ports that no other process is given: bound here, but not listened at, so that a server can, again and again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


def watch_launcher() -> None:
    """End this process when the one that started it is gone: an orphaned worker would train on, unseen, with its port and its memory.

    Does nothing in a process that no launcher has started, and nothing the second time.
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
    """Gloo looks its own address up by the host's name, which need not resolve; on one machine loopback will do."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
