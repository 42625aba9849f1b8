"""`--device`: where a command computes, the same option for all commands that do."""

import os
from typing import Annotated

import typer

from bigbatch.core.environment import DEVICE


def _compute_on(device: str | None) -> str | None:
    """For this process and the workers that it starts."""
    if device is not None:
        os.environ[DEVICE] = device
    return device


Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; a GPU if there is one, else the CPU.", callback=_compute_on),
]
