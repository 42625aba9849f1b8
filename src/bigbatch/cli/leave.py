"""How the program ends: by an error, by a signal, with which exit code."""

import math
import os
import signal
import sys
from typing import NoReturn

from bigbatch.comm.launch.launcher import SIGNAL_DEBOUNCE_S
from bigbatch.comm.parameter_server.process_role import ROLE
from bigbatch.core.checks import Diverged, Elsewhere, Interrupted, LostWorkers, UserError
from bigbatch.core.environment import LAUNCHER, own_rank
from bigbatch.core.signals import seconds_since_the_last


def interrupt(number: int) -> None:
    """A signal to stop that nobody closer to the work catches.

    Raises:
        KeyboardInterrupt: Of which typer makes exit code 130.
    """
    if (since_s := seconds_since_the_last()) < math.inf:  # it is on its way out, and says so
        if since_s > SIGNAL_DEBOUNCE_S:
            os._exit(130)
        return
    if own_rank() == 0:
        os.write(2, f"interrupted ({signal.Signals(number).name}): nothing more was saved\n".encode())  # print can't interrupt a print
    raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Leave; a worker, or who was interrupted, without waiting for libraries to take themselves apart: with gloo that may hang or abort."""
    if "RANK" in os.environ or code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would show a traceback
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def explain(error: Exception) -> int:
    """Print an error as one line and return its exit code; what all workers have in common is said by the first, or their launcher."""
    if os.environ.get("BIGBATCH_DEBUG") == "1":
        raise error
    codes = {UserError: 2, Diverged: 3, LostWorkers: 4, Interrupted: 130}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    label = {1: f"unexpected {type(error).__name__}", 2: "error", 3: "diverged", 4: "lost", 130: "interrupted"}[code]
    hint = "; this is a bug in bigbatch or in the task: --debug shows the traceback" if code == 1 else ""
    if code == 4 and LAUNCHER in os.environ:
        return code  # it knows who was lost, and says it once
    rank = own_rank()
    if rank == 0 or not isinstance(error, Elsewhere | Diverged | Interrupted):
        who = os.environ.get(ROLE, f"worker:{rank}").replace(":", " ")
        sys.stderr.write(f"{f'{who}: ' if rank else ''}{label}: {error}{hint}\n")  # one write: print would make two, and workers' lines mix
    return code
