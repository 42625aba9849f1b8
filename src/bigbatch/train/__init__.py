"""The only place where the methods meet: the training loop, and rooms for what its phases need.

From the top down, each may import those below it: `trainer` (`fit`: sets a run up), `parameter_server`, `loop` (the loop and one update),
`run` (the state of a run), `control` and `adversarial`, `state`, `measure`, `setup`, `update`, `data` and `display`.
"""

from bigbatch.train.state.result import Result
from bigbatch.train.trainer import fit

__all__ = ["Result", "fit"]
