"""What a look at the machine means for training on it, in plain language, each with a remedy.

Severities: problem: a run would fail, or more workers can only make it slower; note: worth knowing, or a speed measured now; ok.
A measured speed is never a problem: a machine that is busy for a moment would fail a check that it passes a minute later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bigbatch.study.machine.measurements import Measurements
from bigbatch.tasks.data.fashion_mnist import HOW_TO_GET

CHECKPOINT_BYTES = 100e6
SLOW_DISK_BYTES_PER_S = 50e6
LITTLE_DISK_BYTES = 1e9
WORKER_BYTES = 500e6
FAIR_SPEEDUP = 0.7
FAIR_RESIDUAL = 0.3


@dataclass(frozen=True)
class Finding:
    """One finding: how severe, what it is, and what to do about it ("" where nothing need be done)."""

    severity: Literal["ok", "note", "problem"]
    text: str
    remedy: str = ""


def findings_of(report: Measurements) -> tuple[Finding, ...]:
    """All findings of the measurements; problems first, then notes, then what is in order."""
    found = [Finding("problem", failure) for failure in report.failures]
    for check in (_cores, _gpus, _backends, _threads, _host, _load, _memory, _speedup, _exchange, _disk, _data, _bits):
        found += check(report)
    return tuple(sorted(found, key=lambda f: ("problem", "note", "ok").index(f.severity)))


def _cores(r: Measurements) -> Iterator[Finding]:
    workers, cores = _count(r.workers, "worker"), _count(r.machine.cores, "core")
    if r.workers <= r.machine.cores:
        yield Finding("ok", f"{workers} on {cores}: {_count(r.threads_per_worker, 'thread')} each")
    elif len(r.machine.gpus) >= r.workers:
        yield Finding("note", f"more workers than cores: {workers} on {cores}; loading data may hold the GPUs up", "use more cores")
    else:
        text = f"more workers than cores: {workers} on {cores}; a step will not get faster"
        yield Finding("problem", text, f"use at most {_count(r.machine.cores, 'worker')}; for a test of correctness, go on")


def _gpus(r: Measurements) -> Iterator[Finding]:
    if 0 < len(r.machine.gpus) < r.workers:
        text = f"more workers than GPUs: {r.workers} on {len(r.machine.gpus)}; NCCL wants one for each, so gloo was measured, on the CPU"
        yield Finding("note", text, f"use at most {_count(len(r.machine.gpus), 'worker')} to train on GPUs")


def _backends(r: Measurements) -> Iterator[Finding]:
    if r.workers > 1 and not r.machine.backends:
        yield Finding("problem", "this torch has neither gloo nor NCCL: workers can't talk", "install a torch with torch.distributed")


def _threads(r: Measurements) -> Iterator[Finding]:
    value = r.settings.get("OMP_NUM_THREADS", "")
    if value.isdecimal() and int(value) * r.workers > max(r.machine.cores, r.workers):
        text = f"OMP_NUM_THREADS is set to {value} with {_count(r.workers, 'worker')} on {_count(r.machine.cores, 'core')}"
        yield Finding("note", f"{text}: threads will wait for one another", f"unset it, or set it to {r.threads_per_worker}")


def _host(r: Measurements) -> Iterator[Finding]:
    if r.workers > 1 and not r.host_resolves and "GLOO_SOCKET_IFNAME" not in r.settings:
        text = "GLOO_SOCKET_IFNAME is not set and this host's name has no address: gloo falls back to loopback, with a warning"
        yield Finding("note", text, "set it to lo for one machine, to the network's interface for several")


def _load(r: Measurements) -> Iterator[Finding]:
    if r.load is not None and r.load > 0.5 * r.machine.cores:
        text = f"the machine is busy: load {r.load:.1f} on {_count(r.machine.cores, 'core')}; the speeds here are what is left"
        yield Finding("note", text, "measure again when it is idle")


def _memory(r: Measurements) -> Iterator[Finding]:
    available = r.machine.available_bytes
    if available is not None and available < WORKER_BYTES * r.workers:
        text = f"{available / 1e9:.1f} GB of memory for {_count(r.workers, 'worker')}: each takes about {WORKER_BYTES / 1e9:g} GB"
        yield Finding("note", text, "end other programs, or use fewer workers")


def _speedup(r: Measurements) -> Iterator[Finding]:
    if r.exchange is not None:
        n = min(r.workers, r.machine.cores) if r.exchange.backend == "gloo" else r.workers
        fair = r.exchange.speedup >= FAIR_SPEEDUP * n
        text = f"{_count(r.workers, 'worker')} at once multiply {r.exchange.speedup:.1f} times as fast as one, of {n} at best"
        remedy = "" if fair else "cores may be shared with other programs, or be hyper-threads: fewer workers may be as fast"
        yield Finding("ok" if fair else "note", text, remedy)


def _exchange(r: Measurements) -> Iterator[Finding]:
    if r.all_reduce is not None:
        text = f"exchanging the gradients of 1,000,000 parameters (4 MB) takes {1000 * r.all_reduce.seconds(4e6):.1f} ms"
        if r.all_reduce.residual <= FAIR_RESIDUAL:
            yield Finding("ok", text)
        else:
            text = f"{text}, but the times scatter by {100 * r.all_reduce.residual:.0f} % around the model"
            yield Finding("note", text, "measure again when the machine is idle before you build on it")


def _disk(r: Measurements) -> Iterator[Finding]:
    if r.disk is None:
        return
    speed = r.disk.write_bytes_per_s
    text = f"disk writes at {speed / 1e6:.0f} MB/s: a checkpoint of {CHECKPOINT_BYTES / 1e6:.0f} MB takes {CHECKPOINT_BYTES / speed:.1f} s"
    slow = speed < SLOW_DISK_BYTES_PER_S
    yield Finding("note" if slow else "ok", text, "choose a faster disk with --out, or save less often with --save-every" if slow else "")
    if r.disk.free_bytes < LITTLE_DISK_BYTES:
        text = f"{r.disk.free_bytes / 1e9:.1f} GB free below {r.disk.folder}: checkpoints may not fit"
        yield Finding("note", text, "free some space, or choose another disk with --out")


def _data(r: Measurements) -> Iterator[Finding]:
    if r.data is None:
        return
    if r.data.folder is None:
        text = f"no Fashion-MNIST: looked in {', '.join(r.data.tried)}; its first run will try to download it"
        yield Finding("note", text, HOW_TO_GET)
    else:
        yield Finding("ok", f"Fashion-MNIST loads in {r.data.seconds:.1f} s from {r.data.folder}")


def _bits(r: Measurements) -> Iterator[Finding]:
    if r.repeats is None:
        return
    if r.repeats:
        a = r.arithmetic
        same = f"{_count(a['num_threads'], 'thread')}, torch {a['torch']} and processor ({a['processor']}, {a['cpu_capability']})"
        yield Finding("ok", f"a gradient has the same bits each time: runs resume bit for bit with the same {same}")
    else:
        text = "the same gradient did not have the same bits each time: a run that is resumed continues to rounding, not bit for bit"
        yield Finding("note", text, "on a CPU, set MKL_CBWR=COMPATIBLE; on a GPU, call torch.use_deterministic_algorithms(True)")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
