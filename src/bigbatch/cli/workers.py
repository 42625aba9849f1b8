"""`--workers`: the same command as several processes of this machine."""

import sys
from pathlib import Path

from bigbatch.core.checks import UserError


def launch_workers(text: str, *, out: Path | None, servers: int) -> int:
    """Start this same command as several workers; returns the exit code."""
    from bigbatch.comm.launch import Workers, launch
    from bigbatch.comm.supervisor import supervise

    workers = Workers.parse(text)
    if workers.elastic and out is None:
        raise UserError(f"--workers {text}: goes on from checkpoints when a worker is lost; give a folder for them with --out")
    i = next(i for i, argument in enumerate(sys.argv) if argument.partition("=")[0] == "--workers")
    rest = sys.argv[i + (1 if "=" in sys.argv[i] else 2) :]
    command = [*sys.argv[1:i], *rest]
    return supervise(command, workers, num_servers=servers, resumes=out is not None) if servers else launch(command, workers)
