"""Several runs at once on this machine: a worker process each, with its share of the cores and a GPU of its own.

A worker process that dies (killed, out of memory) is replaced, and its run made again; a run whose worker died `TRIES` times has failed.
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context, set_start_method
from queue import Empty, Queue
from typing import Any

from bigbatch.core.checks import Diverged, Interrupted, RunFailed, UserError, check_positive
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.hardware.denormals import flush_denormals, flushes_denormals
from bigbatch.core.hardware.devices import num_devices
from bigbatch.runner.jobs import Job, Outcomes, Say, opening
from bigbatch.runner.protocol import Runner
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result

TRIES = 3
POLL_S = 0.2
END_S = 60.0
"""Longest wait for runs to save and end, once asked."""


class Parallel(AbstractContextManager["Parallel"]):
    """Makes runs on this machine, several at once.

    Args:
        number: Of runs at once.

    Raises:
        UserError: If it is not positive.
    """

    def __init__(self, number: int) -> None:
        check_positive("parallel", number)
        self._number = number
        self._slots = [_Slot(index, number) for index in range(number)]

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            slot.close()

    def results(self, runner: Runner, jobs: Sequence[Job], say: Say) -> Outcomes:
        """As `Pool.results`."""
        if runner.in_process:
            _check_pickles(runner)
            self._prepare(runner, jobs)
        waiting: Queue[int] = Queue()
        for number in range(len(jobs)):
            waiting.put(number)
        ended: Queue[tuple[int, Any]] = Queue()
        stop = threading.Event()

        def work(slot: _Slot) -> None:
            while not stop.is_set():
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                ended.put((number, None))  # it begins
                try:
                    outcome: Any = slot.run(runner, jobs[number], stop)
                except BaseException as error:
                    outcome = error
                ended.put((number, outcome))

        with interruptible() as asked, ThreadPoolExecutor(self._number) as threads:
            working = [threads.submit(work, slot) for slot in self._slots]
            try:
                yield from self._as_they_end(jobs, ended, working, asked, say)
            except BaseException:  # also where the caller wants no more
                stop.set()
                for slot in self._slots:
                    slot.ask_to_stop()
                raise

    def _as_they_end(
        self,
        jobs: Sequence[Job],
        ended: "Queue[tuple[int, Any]]",
        working: "list[Future[None]]",
        asked: threading.Event,
        say: Say,
    ) -> Outcomes:
        left = len(jobs)
        while left:
            if asked.is_set():
                raise Interrupted("stopped; finished runs are kept, begun ones are saved, and the same command goes on")
            try:
                number, outcome = ended.get(timeout=POLL_S)
            except Empty:
                if all(future.done() for future in working) and ended.empty():
                    raise RuntimeError("workers ended before their runs") from None
                continue
            if outcome is None:
                say(opening(jobs[number]))
                continue
            if isinstance(outcome, BaseException) and not isinstance(outcome, RunFailed):
                raise outcome
            left -= 1
            yield number, outcome

    def _prepare(self, runner: Runner, jobs: Sequence[Job]) -> None:
        """Let one worker alone measure what depends on the machine's speed: beside others it would be measured wrong."""
        seen: set[str] = set()
        for job in jobs:
            key = job.recipe.replace({"seed": 0}).to_toml()
            if not job.is_finished and key not in seen:
                seen.add(key)
                self._slots[0].prepare(runner, job)


class _Slot:
    """A place for one run at a time: its worker process, made when it is needed, and its GPU."""

    def __init__(self, index: int, of: int) -> None:
        gpus = num_devices("cuda")
        self._environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // of)))}
        if gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else None
            self._environment["CUDA_VISIBLE_DEVICES"] = visible[index % gpus] if visible else str(index % gpus)
        self._executor: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, runner: Runner, job: Job, stop: threading.Event) -> Result:
        """Run one job to its end."""
        if not runner.in_process:
            environment = (*job.request.environment, *self._environment.items())
            return runner.run(job.recipe, replace(job.request, environment=environment, stop=stop))
        for attempt in range(TRIES):
            try:
                result: Result = self._call(_run, runner, job)
                return result
            except BrokenProcessPool:
                self.close()
                if stop.is_set():
                    raise Interrupted("stopped") from None
                if attempt == TRIES - 1:
                    raise RunFailed(
                        f"{job.request.title}: its worker process died {TRIES} times (killed, or out of memory); run fewer at once"
                    ) from None
        raise AssertionError("unreachable")

    def prepare(self, runner: Runner, job: Job) -> None:
        """Let the worker measure what a run needs."""
        with suppress(BrokenProcessPool, UserError):  # the run itself will say what is wrong
            self._call(_prepare, runner, job)

    def _call(self, function: Any, runner: Runner, job: Job) -> Any:
        with self._lock:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1, mp_context=_context(), initializer=_begin, initargs=(self._environment, flushes_denormals())
                )
            future = self._executor.submit(function, runner, job._replace(request=replace(job.request, stop=None)))
        return future.result()

    def ask_to_stop(self) -> None:
        """Ask the run to save and end."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            pids = [p.pid for p in (executor._processes or {}).values() if p.pid is not None]
            executor.shutdown(wait=False, cancel_futures=True)
            end = time.monotonic() + END_S
            while any(_is_alive(pid) for pid in pids) and time.monotonic() < end:
                time.sleep(0.02)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _pids(self) -> list[int]:
        executor = self._executor
        return [p.pid for p in (executor._processes or {}).values() if p.pid is not None] if executor is not None else []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _check_pickles(runner: Runner) -> None:
    try:
        pickle.dumps(runner)
    except Exception as error:
        raise UserError(
            f"{runner.name}: can't be handed to worker processes ({' '.join(str(error).split())[:150]}); define it in a module, "
            "keep lambdas and open files out of it, or run one after another"
        ) from None


def _context() -> Any:
    """How worker processes are started: forked from a fresh process that has imported what runs need, once for all of them.

    Forks of this process could hang: it may have threads, or have used a GPU.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["bigbatch.runner.preload"])
    return context


def _begin(environment: dict[str, str], flush: bool) -> None:
    """In a worker process, before its first run: its share of the machine, its parent's arithmetic; and it ends with its parent."""
    os.environ.update(environment)
    parent = os.getppid()
    set_start_method(None, force=True)  # the platform's own for what a run starts, such as loaders: else "spawn", as for this process
    import torch

    flush_denormals(flush)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(runner: Runner, job: Job) -> Result:
    try:
        return runner.run(job.recipe, job.request)
    except (UserError, Interrupted, Diverged):
        raise
    except KeyboardInterrupt:
        raise Interrupted("stopped") from None


def _prepare(runner: Runner, job: Job) -> None:
    runner.prepare(job.recipe)
