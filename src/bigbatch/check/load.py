"""A loop by its name: `module:function`, or the path of a script that calls `bigbatch.testing.probe()`."""

import runpy
import sys
from pathlib import Path
from typing import Any

from bigbatch.check.probe import Probe
from bigbatch.check.processes import Function
from bigbatch.core.checks import UserError
from bigbatch.runner.function import load_function


def load_loop(name: str) -> Function:
    """The loop that a name stands for.

    Raises:
        UserError: If there is none, or its module can't be imported.
    """
    if name.endswith(".py"):
        return _script(name)
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(f"loop {name!r}: must be module:function, or a script's path; such as train:train or train.py")
    try:
        loop: Any = load_function(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"loop {name!r}: its module can't be imported: {type(error).__name__}: {error}; mend it first") from error
    return loop  # type: ignore[no-any-return]


def _script(name: str) -> Function:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"loop {name!r}: no such script; check its path")

    def script(probe: Probe) -> None:  # noqa: ARG001 the script asks for it
        sys.argv = [name]
        sys.path.insert(0, str(path.parent.absolute()))
        runpy.run_path(name, run_name="__main__")

    script.__name__ = path.name
    return script
