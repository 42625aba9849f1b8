"""Signals that ask a run to save and end.

Ctrl-C (SIGINT), SIGTERM, SIGHUP of a terminal that was closed, and SIGUSR1, by which Slurm warns of a time limit (`--signal=USR1@60`).
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_received: dict[int, float] = {}  # when the last of each came


def was_received(number: int) -> bool:
    """Whether this process has caught that signal."""
    return number in _received


def seconds_since_the_last() -> float:
    """Seconds since this process has caught any of them; infinity if it hasn't."""
    return time.monotonic() - max(_received.values(), default=-math.inf)


def is_importing() -> bool:
    """Whether the main thread is importing a module."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def has_children() -> bool:
    """Whether processes were started here that must be ended first."""
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing is not None and bool(multiprocessing.active_children())


@contextmanager
def caught(handle: Callable[[int], None]) -> Iterator[None]:
    """Hand those signals to `handle` for the duration. Outside the main thread nothing is caught, and an ignored SIGHUP (nohup) stays so.

    Args:
        handle: Takes the signal's number; runs between two instructions of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, terminals = os.getpid(), [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # forked from here, and hasn't set its own handlers yet
            os._exit(128 + number)
        if number == signal.SIGHUP:
            _let_go_of(terminals)
        handled_at = time.monotonic()
        try:
            handle(number)
        finally:
            _received[number] = handled_at

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {number: signal.signal(number, on_signal) for number in STOPS if number != signal.SIGHUP or not ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go_of(terminals: list[int]) -> None:
    """Writing to a terminal that was closed is an error: what is said goes nowhere from now on, and the run can still save."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
