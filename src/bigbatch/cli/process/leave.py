"""How the program ends: by an error, by a signal, with which exit code."""

import math
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from bigbatch.cli.process.streams import flush_streams
from bigbatch.comm.launch.launcher import SIGNAL_DEBOUNCE_S
from bigbatch.comm.parameter_server.process_role import ROLE
from bigbatch.core.checks import Diverged, Elsewhere, Interrupted, LostWorkers, OutputError, UserError
from bigbatch.core.environment import LAUNCHER, own_rank
from bigbatch.core.signals import has_children, is_importing, seconds_since_the_last


def interrupt(number: int) -> None:
    """A signal to stop that nobody closer to the work catches.

    While a module is imported the program ends at once: half imported, libraries make another exception of it, print a traceback, or go on.

    Raises:
        KeyboardInterrupt: Of which typer makes exit code 130.
    """
    if (since_s := seconds_since_the_last()) < math.inf:  # it is on its way out, and says so
        if since_s > SIGNAL_DEBOUNCE_S:
            os._exit(130)
        return
    if own_rank() == 0:
        os.write(2, f"interrupted ({signal.Signals(number).name}): nothing more was saved\n".encode())  # print can't interrupt a print
    if is_importing() and not has_children():
        os._exit(130)
    raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Leave; a worker, or who was interrupted, without waiting for libraries to take themselves apart: with gloo that may hang or abort."""
    if (why := flush_streams()) and code in (0, 5, 6):
        code = 2
        with suppress(OutputError, OSError):
            sys.stderr.write(f"error: {why}\n")
    if "RANK" in os.environ or code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would show a traceback
        os._exit(code)
    sys.exit(code)


def explain(error: Exception) -> int:
    """Print an error as one line and return its exit code; what all workers have in common is said by the first, or their launcher."""
    if os.environ.get("BIGBATCH_DEBUG") == "1":
        raise error
    if seconds_since_the_last() < math.inf and not isinstance(error, UserError | Diverged | LostWorkers | Interrupted):
        return 130  # what a library made of the signal; that it came was said
    codes = {UserError: 2, Diverged: 3, LostWorkers: 4, Interrupted: 130}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    label = {1: f"unexpected {type(error).__name__}", 2: "error", 3: "diverged", 4: "lost", 130: "interrupted"}[code]
    hint = "; this is a bug in bigbatch or in the task: --debug shows the traceback" if code == 1 else ""
    if code == 4 and LAUNCHER in os.environ:
        return code  # it knows who was lost, and says it once
    rank = own_rank()
    if rank == 0 or not isinstance(error, Elsewhere | Diverged | Interrupted):
        who = os.environ.get(ROLE, f"worker:{rank}").replace(":", " ")
        with suppress(OutputError, OSError):  # there may be nobody who reads it
            sys.stderr.write(f"{f'{who}: ' if rank else ''}{label}: {error}{hint}\n")  # one write: workers' lines don't mix
    return code
