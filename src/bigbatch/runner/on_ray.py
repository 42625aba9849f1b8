"""Runs on a Ray cluster: a task each, with its share of cores and GPUs; Ray makes the runs of a lost node again elsewhere.

A run writes into its folder where the node sees it (shared storage), and goes on from its checkpoint there if it is made again; elsewhere
it writes into a folder of the node's own, which comes back with the result.
"""

import io
import os
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from bigbatch.core.checks import Interrupted, RunFailed, UserError
from bigbatch.core.environment import FORCE
from bigbatch.core.extras import needed
from bigbatch.core.hardware.denormals import flush_denormals, flushes_denormals
from bigbatch.runner.jobs import Job, Outcomes, Say, opening
from bigbatch.runner.protocol import Runner
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result

POLL_S = 0.5
CONNECT_S = 10.0
TRIES = 4
"""Times that a run is begun where its node or its process is lost."""


class OnRay(AbstractContextManager["OnRay"]):
    """Makes runs on a Ray cluster.

    Args:
        address: Of the cluster, such as "auto" or "10.0.0.1:6379"; one on this machine for the time of the study if left out.
        num_cpus: Cores a run.
        num_gpus: GPUs a run, such as 0.5; one where the cluster has any, if left out.
        at_once: Most runs at once; as many as the cluster holds if left out.

    Raises:
        MissingExtra: If Ray is not installed.
        UserError: If the cluster can't be reached.
    """

    def __init__(
        self, address: str | None = None, *, num_cpus: float = 1, num_gpus: float | None = None, at_once: int | None = None
    ) -> None:
        with needed("runs on a Ray cluster", extra="ray"):
            import ray
        self._ray: Any = ray
        self._address, self._at_once = address, at_once
        self._connect()
        gpus = num_gpus if num_gpus is not None else float(self._ray.cluster_resources().get("GPU", 0) > 0)
        self._share = {"num_cpus": num_cpus, "num_gpus": gpus}

    def _connect(self) -> None:
        self._began = not self._ray.is_initialized()
        if not self._began:
            return
        address = self._address
        _check_reachable(address)
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is begun here tells nobody
        settings: dict[str, Any] = {"include_dashboard": False} if address is None else {"address": address}
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **settings)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"Ray at {address}: can't be reached ({why}); check the address, and that the cluster runs") from None

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():  # used before
            self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        if self._began and self._ray.is_initialized():
            self._ray.shutdown()

    def results(self, runner: Runner, jobs: Sequence[Job], say: Say) -> Outcomes:
        """As `Pool.results`."""
        settings = {**self._share, "max_retries": TRIES - 1}
        run = self._ray.remote(**settings)(_run_there)
        what = self._ray.put((self._ray.cloudpickle.dumps(runner), sys.path, flushes_denormals()))
        waiting, running = list(range(len(jobs))), dict[Any, int]()
        with interruptible() as asked:
            try:
                while waiting or running:
                    while waiting and (self._at_once is None or len(running) < self._at_once):
                        number = waiting.pop(0)
                        job = jobs[number]
                        say(opening(job))
                        if job.is_finished:
                            yield number, runner.run(job.recipe, job.request)
                            continue
                        running[run.remote(what, _there(job), _mark(job))] = number
                    done, _ = self._ray.wait(list(running), timeout=POLL_S) if running else ([], [])
                    for reference in done:
                        number = running.pop(reference)
                        yield number, self._outcome(reference, jobs[number])
                    if asked.is_set():
                        raise Interrupted("stopped; finished runs are kept, and the same command goes on with the others")
            finally:
                for reference in running:
                    with suppress(Exception):
                        self._ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, job: Job) -> Result | RunFailed:
        exceptions = self._ray.exceptions
        try:
            result, files = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RunFailed):
                return cause
            if isinstance(cause, UserError | Interrupted):
                raise cause from None
            return RunFailed(f"{job.request.title}: {cause or error}")
        except exceptions.RayError as error:
            return RunFailed(f"{job.request.title}: lost {TRIES} times: {' '.join(str(error).split())[:200]}")
        if files is not None and job.request.out is not None:
            _unpack(files, job.request.out)
        return Result.from_json(result)


def _check_reachable(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        UserError: If it has a port, to which no connection can be made.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"Ray at {address}: can't be reached ({error}); check the address, and that the cluster runs") from None


def _there(job: Job) -> Job:
    out = job.request.out.absolute() if job.request.out is not None else None
    return job._replace(request=replace(job.request, out=out, stop=None, quiet=True))


def _mark(job: Job) -> str:
    """A mark in the run's folder, by which a node knows that it sees the same one; empty without a folder."""
    if job.request.out is None:
        return ""
    job.request.out.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{time.time_ns()}"
    (job.request.out / ".ray").write_text(mark)
    return mark


def _run_there(what: tuple[bytes, list[str], bool], job: Job, mark: str) -> tuple[str, bytes | None]:
    """On a node: the result, and the folder where the caller does not see it.

    `what` is the runner, where the caller finds modules (the user's own may lie beside a settings file), and its arithmetic.
    """
    import ray

    pickled, paths, flush = what
    flush_denormals(flush)
    sys.path += [path for path in paths if path not in sys.path]
    runner: Runner = ray.cloudpickle.loads(pickled)
    os.environ[FORCE] = "1"  # an owner of the folder has ended: Ray begins a run anew only then
    out = job.request.out
    if out is None or _sees(out, mark):
        return runner.run(job.recipe, job.request).to_json(), None
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) / "run"
        result = runner.run(job.recipe, replace(job.request, out=folder))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(folder, arcname=".")
        return result.to_json(), packed.getvalue()


def _sees(out: Path, mark: str) -> bool:
    try:
        return (out / ".ray").read_text() == mark
    except OSError:
        return False


def _unpack(files: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(files), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")
