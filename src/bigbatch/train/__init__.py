"""The only place where the methods meet: one training loop, whole in view."""

from bigbatch.train.loop import fit
from bigbatch.train.state.result import Result

__all__ = ["Result", "fit"]
