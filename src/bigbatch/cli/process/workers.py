"""`--workers`: the same command as several processes of this machine."""

import contextlib
import importlib
import runpy
import sys
from functools import partial
from pathlib import Path

from bigbatch.core.checks import UserError
from bigbatch.core.environment import DEVICE, read_variable
from bigbatch.core.extras import needed

IMPORTS = ("bigbatch.cli.display.tables", "bigbatch.tasks", "bigbatch.train.trainer", "torch._dynamo")
"""What every worker would import, some of it late (torch's optimizers at the first step) and all of it slowly."""


def launch_workers(text: str, *, out: Path | None, servers: int) -> int:
    """Start this same command as several workers; returns the exit code."""
    from bigbatch.comm.launch.launcher import Workers, launch
    from bigbatch.comm.parameter_server.supervisor import supervise
    from bigbatch.core.storage.saved import Saved

    workers = Workers.parse(text)
    if workers.elastic and out is None:
        raise UserError(f"--workers {text}: goes on from checkpoints when a worker is lost; give a folder for them with --out")
    i = next(i for i, argument in enumerate(sys.argv) if argument.partition("=")[0] == "--workers")
    rest = sys.argv[i + (1 if "=" in sys.argv[i] else 2) :]
    command = [*sys.argv[1:i], *rest]
    saved = Saved(out, [*program(), *sys.argv[1:]])
    if servers:
        with needed("a parameter server", extra="parameter-server"):
            import zmq  # noqa: F401  before there are processes that would all say so
        _check_device()
        return supervise(command, workers, saved, num_servers=servers)
    return launch(partial(_run, command), workers, saved, prepare=_prepare)


def program() -> list[str]:
    """How this program was called: `bigbatch`, or `python -m bigbatch`."""
    return ["python", "-m", "bigbatch"] if Path(sys.argv[0]).name == "__main__.py" else ["bigbatch"]


def _prepare() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("torch.utils.tensorboard")
    _check_device()


def _check_device() -> None:
    """Refuse a device that is not here once, before there are workers that would all refuse it."""
    if read_variable(DEVICE) is not None:
        from bigbatch.core.hardware.devices import choose_device

        choose_device()


def _run(command: list[str]) -> None:
    """What `python -m bigbatch COMMAND` does, in this process."""
    sys.argv = [sys.argv[0], *command]
    sys.modules.pop("bigbatch.__main__", None)  # the installed program has imported it
    runpy.run_module("bigbatch", run_name="__main__")
