"""Where the cases run: on the simulated device, or where `WAITS_ON` says: on a GPU, or on the CPU.

On a GPU `torch.cuda.set_sync_debug_mode("error")` knows more waits than the simulated device, and raises at the first one of a case. On
the CPU nothing waits: that run shows that the cases run.
"""

import os
from contextlib import contextmanager

import torch

ON = os.environ.get("WAITS_ON", "simulated")
if ON == "simulated":
    from tests.accelerator.simulated import DEVICE, Log, Simulated
else:
    DEVICE, Log, Simulated = torch.device(ON, 0) if ON == "cuda" else torch.device(ON), None, None


def set_phase(name):
    """From now on waits are noted under a name; None: they are allowed."""
    if Log is not None:
        Log.phase = name
    elif ON == "cuda":
        torch.cuda.set_sync_debug_mode("default" if name is None else "error")


@contextmanager
def phase(name):
    """Within."""
    if Log is not None:
        before = Log.phase
    elif ON == "cuda":
        before = "within" if torch.cuda.get_sync_debug_mode() else None
    else:
        before = None
    set_phase(name)
    try:
        yield
    finally:
        set_phase(before)
