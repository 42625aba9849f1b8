"""One worker of one run: a process that has torch changed, joins the group, calls the loop once and tells what was seen."""

import faulthandler
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from bigbatch.check.arrangement import Setup
from bigbatch.check.patches import patch
from bigbatch.check.probe import Probe, seed_all, set_current
from bigbatch.check.watch import Record, Watch
from bigbatch.comm.launch.launcher import watch_launcher
from bigbatch.core.environment import LAUNCHER

OUTPUT, STUCK = "output-{}.txt", "stuck-{}.txt"
"""Files of each rank: what it printed; where it stood when its time was over."""


class Failure(NamedTuple):
    """How the loop ended in an exception: its type and message, and the line of the user's code."""

    error: str
    where: str


def run_worker(function: Callable[[Probe], Any], setup: Setup, rank: int, folder: Path, time_limit_s: float, answer: Connection) -> None:
    """Run the loop once in this process, and end the process.

    Args:
        function: The loop.
        setup: What it is told.
        rank: Of this process.
        folder: For the rendezvous and the files above.
        time_limit_s: After it the process writes where it stands.
        answer: Gets a `Record` or a `Failure`.
    """
    os.setsid()
    os.environ[LAUNCHER] = str(os.getppid())
    watch_launcher()
    output = (folder / OUTPUT.format(rank)).open("w", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    faulthandler.enable(output)
    stuck = (folder / STUCK.format(rank)).open("w")
    faulthandler.dump_traceback_later(time_limit_s, file=stuck)
    try:
        answer.send(_run(function, setup, rank, folder, time_limit_s))
    except BaseException as error:
        traceback.print_exc()
        answer.send(Failure(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", _where(error)))
    output.flush()
    os._exit(0)  # no waiting for libraries to take themselves apart


def _run(function: Callable[[Probe], Any], setup: Setup, rank: int, folder: Path, time_limit_s: float) -> Record:
    workers = str(setup.arrangement.workers)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    os.environ |= {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    warnings.simplefilter("default")  # an experiment may cause some, which are no errors of the loop
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if setup.float64 else torch.float32)
    limit = timedelta(seconds=10 * time_limit_s)  # who waits longer is ended from outside, and is not to blame
    store = f"file://{(folder / 'store').absolute()}"
    distributed.init_process_group("gloo", store, rank=rank, world_size=setup.arrangement.workers, timeout=limit)
    distributed.init_process_group = distributed.destroy_process_group = _nothing  # the group is there, and stays
    probe = Probe(setup, rank)
    set_current(probe)
    watch = Watch(setup, probe)
    patch(setup, watch)
    seed_all(setup.seed)
    function(probe)
    return watch.record()


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of a function that is not needed here."""


def _where(error: BaseException) -> str:
    """File and line of the last frame that is neither torch's nor ours."""
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(ours) and not {"torch", "runpy.py"} & set(Path(f.filename).parts)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
