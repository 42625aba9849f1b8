"""A preflight: what this machine is, how fast, and what its workers cost one another. `bigbatch doctor` prints it."""

import contextlib
import dataclasses
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bigbatch.comm.launch.preflight import measure_workers
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.environment import DATA, read_variable
from bigbatch.core.hardware.arithmetic import arithmetic, repeats
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.hardware.machine import Machine, disk_speed, inspect_machine, matmul_gflops
from bigbatch.core.version import __version__
from bigbatch.simulate.alpha_beta import AlphaBeta, fit_alpha_beta, ring_link
from bigbatch.study.machine.findings import Finding, findings_of
from bigbatch.study.machine.measurements import Data, Measurements
from bigbatch.tasks.data.fashion_mnist import NAME, SHA256, SYSTEM, fashion_mnist
from bigbatch.tasks.data.locate import cache_folder

T = TypeVar("T")
WORKERS_A_CORE = 4
SETTINGS = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
RESOLVE_S = 2.0


@dataclass(frozen=True)
class Report(Measurements):
    """What `examine` measured, and what it means for training on this machine."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What it means, in words; problems first."""
        return findings_of(self)

    @property
    def ready(self) -> bool:
        """Whether there is no problem among the findings; notes do not count."""
        return all(f.severity != "problem" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; models with their bandwidth, null where infinite."""
        models = {name: _model(getattr(self, name)) for name in ("all_reduce", "link")}
        whole = {**dataclasses.asdict(self), **models, "findings": [dataclasses.asdict(f) for f in self.findings], "ready": self.ready}
        plain: dict[str, Any] = json.loads(json.dumps(whole, allow_nan=False))
        return plain


def examine(workers: int = 1, *, data: Path | None = None, out: Path | None = None, timeout_s: float = 60.0) -> Report:
    """Look at this machine before training on it; about 10 seconds, leaving no file and no process behind.

    Args:
        workers: Workers to prepare for; from 2 on, as many processes are started and timed.
        data: Folder of Fashion-MNIST; None looks in `BIGBATCH_DATA`, the cache and the system's data folder, not on the network.
        out: Folder whose disk is timed; None takes the current one.
        timeout_s: Longest wait for the workers.

    Returns:
        The report. What fails on the way, such as a worker that dies, is a finding of severity "problem".

    Raises:
        UserError: If the number of workers is not above zero, or is more than this machine can start at all.
    """
    check_positive("workers", workers)
    machine = inspect_machine()
    most = max(8, WORKERS_A_CORE * machine.cores, len(machine.gpus))
    if workers > most:
        raise UserError(f"workers = {workers}: at most {most} are started on {machine.cores} cores; give fewer")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    threads = max(1, machine.cores // workers)
    backend = "nccl" if "nccl" in machine.backends and len(machine.gpus) >= workers else "gloo"
    failures: list[str] = []
    gflops = _gflops(machine)
    disk = _attempt(lambda: disk_speed(out or Path()), failures)
    found = _attempt(lambda: _load_fashion_mnist(data), failures)
    exchange = model = None
    if workers > 1:
        exchange = _attempt(lambda: measure_workers(workers, threads=threads, backend=backend, timeout_s=timeout_s), failures)
    if exchange is not None:
        model = fit_alpha_beta(exchange.seconds)
    return Report(
        workers=workers,
        threads_per_worker=threads,
        machine=dataclasses.replace(machine, versions={"bigbatch": __version__, **machine.versions}),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        load=load,
        host_resolves=_host_resolves(),
        gflops=gflops,
        disk=disk,
        data=found,
        exchange=exchange,
        all_reduce=model,
        link=ring_link(model, workers=workers) if model else None,
        failures=tuple(failures),
        arithmetic=arithmetic(choose_device()),
        repeats=repeats(device="cuda" if machine.gpus else "cpu"),
    )


def _attempt(measure: Callable[[], T], failures: list[str]) -> T | None:
    """What `measure` returns; None where it fails, with the reason put into `failures`."""
    try:
        return measure()
    except UserError as error:
        failures.append(str(error))
        return None


def _gflops(machine: Machine) -> dict[str, float]:
    speeds = {f"{n} thread{'s' if n > 1 else ''}": matmul_gflops(n) for n in dict.fromkeys((1, machine.cores))}
    return {**speeds, "GPU": matmul_gflops(device="cuda")} if machine.gpus else speeds


def _load_fashion_mnist(data: Path | None) -> Data:
    """Load it from the first place on this machine that has it.

    Raises:
        DataError: If it is damaged, or missing from a folder that was named.
    """
    named = data or read_variable(DATA)
    folders = [Path(named)] if named else [cache_folder() / NAME, SYSTEM]
    for folder in folders:
        if named or all((folder / file).is_file() for file in SHA256):
            begin = time.perf_counter()
            fashion_mnist.__wrapped__(folder)  # anew, not what this process may have loaded before
            return Data(str(folder), time.perf_counter() - begin, ())
    return Data(None, None, tuple(str(folder) for folder in folders))


def _host_resolves() -> bool:
    """Whether this host's name has an address; "no" also where the answer takes long, as it does without a network."""
    addresses: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            addresses.extend(socket.getaddrinfo(socket.gethostname(), None))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_S)
    return bool(addresses)


def _model(model: AlphaBeta | None) -> dict[str, float | None] | None:
    if model is None:
        return None
    bandwidth = model.bandwidth_bytes_per_s
    return {**model._asdict(), "bandwidth_bytes_per_s": bandwidth if math.isfinite(bandwidth) else None}
