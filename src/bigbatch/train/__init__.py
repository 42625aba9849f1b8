"""The only place where the methods meet: the training loop, and rooms for what its phases need.

From the top down, each may import those below it: `trainer` (`fit`: sets a run up), `parameter_server`, `loop` (the loop and one update),
`run` (the state of a run), `control` and `adversarial`, `state`, `measure`, `setup`, `update`, `data` and `display`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigbatch.train.state.result import Result
    from bigbatch.train.trainer import fit

__all__ = ["Result", "fit"]
_HOMES = {"Result": "bigbatch.train.state.result", "fit": "bigbatch.train.trainer"}


def __getattr__(name: str) -> Any:
    """Both on first use: who reads what a run has left needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bigbatch.train' has no attribute {name!r}")
