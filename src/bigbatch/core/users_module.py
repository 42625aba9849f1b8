"""Modules of the user's, named as module:attribute on a command line or in a recipe."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from bigbatch.core.checks import UserError


def import_users_module(what: str, module_name: str) -> ModuleType:
    """Import a module; the current folder is searched too.

    Args:
        what: Is named so, for the message, such as "task 'mine:Task'".
        module_name: With dots for packages.

    Raises:
        UserError: If there is no such module, or not one of its packages. What is missing inside of it is an error of its own.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{what}: no module named {error.name!r} here or on the Python path; check its name") from None
