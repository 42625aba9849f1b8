"""`--force`: take over a folder that an owner on another host has not given back."""

import os
from typing import Annotated

import typer

from bigbatch.core.environment import FORCE


def _take_over(force: bool) -> bool:
    """For this process and the workers that it starts."""
    if force:
        os.environ[FORCE] = "1"
    return force


Force = Annotated[bool, typer.Option("--force", help="Take over a folder whose owner on another host has ended.", callback=_take_over)]
