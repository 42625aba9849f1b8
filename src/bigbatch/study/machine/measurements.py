"""What a look at the machine measures: the fields of `bigbatch doctor`'s report."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from bigbatch.comm.launch.preflight import WorkerTimings
from bigbatch.core.hardware.machine import Disk, Machine
from bigbatch.simulate.alpha_beta import AlphaBeta


@dataclass(frozen=True)
class Data:
    """Fashion-MNIST: the folder that holds it (None where no place does), seconds to load and verify it, and where it was looked for."""

    folder: str | None
    seconds: float | None
    tried: tuple[str, ...]


@dataclass(frozen=True)
class Measurements:
    """What `examine` measured; `Report` adds what it means.

    Attributes:
        workers: Workers asked for.
        threads_per_worker: CPU threads that each would use: cores over workers, at least 1.
        machine: Versions, cores, memory, GPUs, backends.
        settings: Environment variables that change how workers run, where set.
        load: Mean number of running processes over the last minute, before anything was measured; None where the system does not tell.
        host_resolves: Whether this host's name has an address.
        gflops: Speed of float32 matrix products, 10^9 operations per second, at "1 thread", "N threads" and on "GPU".
        disk: Speed of the output folder's disk; None where it failed.
        data: Whether Fashion-MNIST is at hand; None where it failed.
        exchange: What the workers measured; None for one worker, or where one failed.
        all_reduce: Model fitted to their all-reduces.
        link: The same as a cost per message, had it been a ring.
        failures: What went wrong, in words.
        arithmetic: What the last bits of a run depend on, with the threads that this process has.
        repeats: Whether the same gradient had the same bits each time; None where that was not tried.
    """

    workers: int
    threads_per_worker: int
    machine: Machine
    settings: dict[str, str]
    load: float | None
    host_resolves: bool
    gflops: dict[str, float]
    disk: Disk | None
    data: Data | None
    exchange: WorkerTimings | None
    all_reduce: AlphaBeta | None
    link: AlphaBeta | None
    failures: tuple[str, ...]
    arithmetic: dict[str, Any] = dataclasses.field(default_factory=dict)
    repeats: bool | None = None
