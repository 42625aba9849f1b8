"""Signals that ask to stop, as a flag that is read between updates, and a stopwatch that can be paused."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigbatch.comm.launch.launcher import SIGNAL_DEBOUNCE_S
from bigbatch.core.checks import Interrupted
from bigbatch.core.clock import Clock
from bigbatch.core.environment import LAUNCHER
from bigbatch.core.signals import caught
from bigbatch.core.storage.saved import Saved


@contextmanager
def interruptible(out: str | Path | None = None) -> Iterator[threading.Event]:
    """Catch the signals that ask a run to save and end (`core.signals`) for the duration. Outside the main thread nothing is caught.

    Args:
        out: The run's folder, to say what is saved where a second Ctrl-C ends the run at once. A worker of a launcher leaves that to it.

    Raises:
        Interrupted: At the second Ctrl-C, wherever the run is.
    """
    asked = threading.Event()
    when, ended = 0.0, False

    def ask(number: int) -> None:
        nonlocal when, ended
        if (
            number == signal.SIGINT
            and asked.is_set()
            and time.monotonic() - when > SIGNAL_DEBOUNCE_S
            and LAUNCHER not in os.environ
            and not ended
        ):
            ended = True
            raise KeyboardInterrupt
        when = when or time.monotonic()
        asked.set()

    with caught(ask):
        try:
            yield asked
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; {Saved(Path(out) if out is not None else None).in_words()}") from None


class Stopwatch:
    """Seconds since it was made, without the pauses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._began = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        seconds = self.seconds
        try:
            yield
        finally:
            self._began = time.perf_counter() - seconds


def how_to_resume(clock: Clock, out: str | Path | None) -> str:
    """What an interrupted run says last."""
    if out is None:
        return f"stopped after update {clock.updates}; nothing was saved: no --out was given"
    return f"stopped after update {clock.updates} and saved; continue with the same command and --resume (--out {out} --resume)"
