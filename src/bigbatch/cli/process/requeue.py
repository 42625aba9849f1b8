"""`--requeue`: when Slurm warns of the time limit by SIGUSR1, the run saves and its job is queued again, to go on by itself."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigbatch.core.checks import Interrupted, UserError
from bigbatch.core.environment import LAUNCHER, own_rank
from bigbatch.core.signals import was_received

SLURM_JOB = "SLURM_JOB_ID"


@contextmanager
def requeued(asked: bool, *, out: Path | None) -> Iterator[None]:
    """Queue the Slurm job again if what is done inside ends because of SIGUSR1. By the launcher, or the first worker where there is none.

    Args:
        asked: Whether to; else nothing is done.
        out: The run's folder. The job that comes back has the same number, by which it knows the run there as its own.

    Raises:
        UserError: If this can't work: no folder, no Slurm job, no scontrol.
    """
    if not asked or LAUNCHER in os.environ:
        yield
        return
    if out is None:
        raise UserError("--requeue without --out: the job that comes back goes on from a checkpoint; give a folder with --out")
    if SLURM_JOB not in os.environ:
        raise UserError(f"--requeue: needs a Slurm job, and {SLURM_JOB} is not set; leave --requeue out, or submit this with sbatch")
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        raise UserError("--requeue: needs scontrol, which is not on PATH here; leave --requeue out, or mend PATH")
    number = os.environ[SLURM_JOB]
    try:
        yield
    except BaseException as end:
        interrupted = isinstance(end, Interrupted | KeyboardInterrupt) or getattr(end, "exit_code", None) == 130
        if was_received(signal.SIGUSR1) and interrupted and own_rank() == 0:
            asked_slurm = subprocess.run([scontrol, "requeue", number], capture_output=True, text=True, check=False)
            why = " ".join(asked_slurm.stderr.split()) or f"exit code {asked_slurm.returncode}"
            told = (
                f"Slurm job {number} is queued again" if asked_slurm.returncode == 0 else f"Slurm did not queue job {number} again ({why})"
            )
            print(f"requeue: {told}", file=sys.stderr, flush=True)
        raise
