"""What this machine is: versions, cores, memory, GPUs, and how fast it multiplies and writes. Measurements end in about a second each."""

import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed

from bigbatch.core.checks import OutputError
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.hardware.devices import synchronize

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class GPU:
    """One GPU: its name and its memory in bytes."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """Facts, not measurements.

    Attributes:
        versions: Of python, torch, numpy, and of CUDA and NCCL where torch was built with them.
        cores: CPU cores that this process may use.
        memory_bytes: Memory of the machine; None where the system does not tell.
        available_bytes: Memory that can still be had; None where the system does not tell.
        gpus: GPUs that torch sees.
        backends: Of torch.distributed, those of gloo and nccl that can be used here.
    """

    versions: dict[str, str]
    cores: int
    memory_bytes: int | None
    available_bytes: int | None
    gpus: tuple[GPU, ...]
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Disk:
    """Speed of the disk below `folder`, in bytes/s; writes include fsync."""

    folder: str
    write_bytes_per_s: float
    read_bytes_per_s: float
    free_bytes: int


def inspect_machine() -> Machine:
    """Versions, cores, memory, GPUs and backends of this process."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": version("numpy")}
    gpus: list[GPU] = []
    backends = ["gloo"] if distributed.is_available() and distributed.is_gloo_available() else []
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = [GPU(p.name, p.total_memory) for p in properties]
        versions["cuda"] = str(torch.version.cuda)
        if distributed.is_available() and distributed.is_nccl_available():
            versions["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
            backends.append("nccl")
    total, available = _memory()
    return Machine(versions, usable_cores(), total, available, tuple(gpus), tuple(backends))


def matmul_gflops(threads: int | None = None, *, device: str = "cpu", window_s: float = 0.4) -> float:
    """Speed of float32 matrix products of 1024 x 1024 (4096 on a GPU), mean over a window, in 10^9 operations per second.

    Args:
        threads: CPU threads to use, put back afterwards; None leaves them.
        device: Where to multiply.
        window_s: How long to go on, after one product that does not count.
    """
    before = torch.get_num_threads()
    size = 1024 if device == "cpu" else 4096
    torch.set_num_threads(threads or before)
    try:
        a = torch.rand(size, size, device=device)
        _multiply(a)
        begin, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begin < window_s:
            _multiply(a)
            count += 1
        return count * 2 * size**3 / (time.perf_counter() - begin) / 1e9
    finally:
        torch.set_num_threads(before)


def disk_speed(folder: Path, *, num_bytes: int = 64 << 20, limit_s: float = 2.0) -> Disk:
    """Write a temporary file in pieces of 8 MB, each with fsync, and read it again past the cache; nothing stays behind.

    Args:
        folder: Where to write; if it does not exist, the nearest folder above it that does.
        num_bytes: Most to write.
        limit_s: Stop writing once this long has passed: a slow disk is known by then.

    Raises:
        OutputError: If the folder can't be written, or is full.
    """
    folder = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    chunk, written = os.urandom(CHUNK_BYTES), 0
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            begin = time.perf_counter()
            while written == 0 or (written < num_bytes and time.perf_counter() - begin < limit_s):
                written += file.write(chunk)
                os.fsync(file.fileno())
            write_s = time.perf_counter() - begin
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            begin = time.perf_counter()
            while file.read(CHUNK_BYTES):
                pass
            read_s = time.perf_counter() - begin
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"output folder {folder}: {error.strerror}; choose a folder that you can write with --out") from error
    return Disk(str(folder), written / write_s, written / read_s, free)


def _multiply(a: torch.Tensor) -> None:
    torch.mm(a, a)
    synchronize(a.device)


def _memory() -> tuple[int | None, int | None]:
    """Total and available memory in bytes."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, available
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (OSError, ValueError):
        return None, None
