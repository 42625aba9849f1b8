"""Describe how a process exited: the exit code or the signal, and the likely reason."""

import signal
from collections.abc import Sequence
from pathlib import Path

CGROUP_MEMBERSHIP, CGROUP_ROOT, PROCESSES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc")
REASONS = {
    signal.SIGSEGV: "a crash in native code: torch, a driver or an extension",
    signal.SIGBUS: "unreadable memory: often a full /dev/shm or a truncated file",
    signal.SIGILL: "an instruction that this processor does not support",
    signal.SIGFPE: "an arithmetic error in native code",
    signal.SIGABRT: "a library aborted: see its output",
    signal.SIGTERM: "terminated from outside",
}


def oom_kills(membership: Path = CGROUP_MEMBERSHIP, control_groups: Path = CGROUP_ROOT) -> int | None:
    """The kernel's count of out-of-memory kills in this process's control group; None if it is not available.

    Args:
        membership: File with the control groups of this process.
        control_groups: Mount point of the control groups, version 2 or version 1.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    v1 = [(control_groups / "memory", path, "memory.oom_control") for _, kinds, path in lines if "memory" in kinds.split(",")]
    v2 = [(control_groups, path, "memory.events") for _, kinds, path in lines if not kinds]
    for root, path, name in v1 + v2:
        for folder in (root / path.lstrip("/"), root):  # a container may see its own group as the root
            try:
                counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(counts["oom_kill"])
            except (OSError, KeyError, ValueError):
                continue
    return None


def describe_exit(code: int, oom_kills_before: int | None) -> str:
    """Describe an exit code; a negative one is a signal.

    Args:
        code: As in `subprocess` and `multiprocessing`.
        oom_kills_before: Value of `oom_kills` at the start of the process.

    >>> describe_exit(77, None), describe_exit(-11, None)
    ('ended with exit code 77', 'was killed by SIGSEGV (a crash in native code: torch, a driver or an extension)')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
    if number == signal.SIGKILL:
        count = oom_kills()
        rose = count is not None and oom_kills_before is not None and count > oom_kills_before
        reason = (
            "out of memory: the kernel's count of out-of-memory kills rose"
            if rose
            else "from outside, or out of memory: see the kernel's log"
        )
    else:
        reason = REASONS.get(number, "")
    return f"was killed by {number.name}" + (f" ({reason})" if reason else "")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        return (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def name_workers(numbers: Sequence[int], *, of: int | None = None) -> str:
    """Names of workers, as the subject of a sentence.

    >>> name_workers([1], of=2), name_workers([0, 2])
    ('worker 1 of 2', 'workers 0 and 2')
    """
    *most, last = map(str, sorted(numbers))
    return (f"workers {', '.join(most)} and {last}" if most else f"worker {last}") + ("" if of is None else f" of {of}")
