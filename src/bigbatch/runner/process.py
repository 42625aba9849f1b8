"""One process of a command: its output kept and read line by line, its time limited, its end made sure."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from bigbatch.core.checks import OutputError, RunFailed

MOST_BYTES = 32 * 2**20
"""Of each of the two outputs that are kept, and as many of its end."""
TAIL_BYTES = 2**20
LONGEST_LINE = 2**16
"""A longer line is read in pieces."""
POLL_S = 0.1
GRACE_S = 10.0
"""From the request to end to the kill."""


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # exit code; minus the signal of a process that one ended
    seconds: float
    stopped: str = ""  # "" by itself, "time" by its limit, "asked" from outside, "done" since nothing more is wanted


def run_process(
    arguments: Sequence[str],
    *,
    folder: Path,
    cwd: Path,
    environment: Mapping[str, str],
    shell: bool = False,
    time_limit_s: float | None = None,
    on_line: Callable[[str], None],
    poll: Callable[[], bool],
    asked: Callable[[], bool],
) -> Ended:
    """Run a command to its end, in a session of its own, so that all that it started ends with it.

    Args:
        arguments: Program and arguments; of a shell, one line.
        folder: `stdout.txt` and `stderr.txt` are written here; of a longer output than `MOST_BYTES` the end is kept too.
        cwd: Working folder.
        environment: All of it.
        shell: Whether `/bin/sh` reads the line.
        time_limit_s: Seconds; None for no limit.
        on_line: Called with each line of standard output, in a thread of its own.
        poll: Called every `POLL_S` seconds; True when nothing more is wanted of the process.
        asked: Whether the run is asked to stop.

    Raises:
        RunFailed: If the program can't be started.
        OutputError: If its output can't be kept.
    """
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            arguments[0] if shell else list(arguments),
            cwd=cwd,
            env=dict(environment),
            shell=shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise RunFailed(f"command {arguments[0]!r:.120}: can't be started in {cwd}: {error.strerror}; check its name and path") from None
    readers: list[_Reader] = []
    stopped = ""
    try:
        readers.append(_Reader(process.stdout, folder / "stdout.txt", on_line))  # type: ignore[arg-type]
        readers.append(_Reader(process.stderr, folder / "stderr.txt", None))  # type: ignore[arg-type]
        while not stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
                break
            if asked():
                stopped = "asked"
            elif poll():
                stopped = "done"
            elif time_limit_s is not None and time.monotonic() - began > time_limit_s:
                stopped = "time"
    finally:
        _end(process, gently=stopped in ("asked", "done"))
        for reader in readers:
            reader.join(GRACE_S)
    return Ended(process.returncode, time.monotonic() - began, stopped)


def _end(process: "subprocess.Popen[bytes]", *, gently: bool) -> None:
    """End a process and all of its session that still runs."""
    if gently and process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Reader(threading.Thread):
    """Reads one output to its end, whatever comes."""

    def __init__(self, stream: IO[bytes], path: Path, on_line: Callable[[str], None] | None) -> None:
        super().__init__(daemon=True)
        self._stream, self._on_line = stream, on_line
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            stream.close()
            raise OutputError(f"can't write {path}: {error.strerror}; free some space, or choose another --out") from None
        self._written = self._left_out = 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.start()

    def run(self) -> None:
        """Until the last process that holds the pipe has closed it."""
        with self._file as file, self._stream as stream:
            begun = b""
            while chunk := os.read(stream.fileno(), LONGEST_LINE):
                self._keep(chunk, file)
                if self._on_line is None:
                    continue
                *lines, begun = (begun + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in [*lines, *([begun] if len(begun) >= LONGEST_LINE else [])]:
                    self._on_line(line.decode("utf-8", "replace"))
                begun = b"" if len(begun) >= LONGEST_LINE else begun
            if begun and self._on_line is not None:
                self._on_line(begun.decode("utf-8", "replace"))
            if self._left_out:
                with contextlib.suppress(OSError):
                    file.write(f"\n[{self._left_out - self._tail_bytes:,} bytes left out]\n".encode() + b"".join(self._tail))

    def _keep(self, chunk: bytes, file: IO[bytes]) -> None:
        if self._written < MOST_BYTES:
            with contextlib.suppress(OSError):  # a full disk ends no training
                file.write(chunk)
            self._written += len(chunk)
            return
        self._left_out += len(chunk)
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes > TAIL_BYTES + LONGEST_LINE:
            self._tail_bytes -= len(self._tail.popleft())
