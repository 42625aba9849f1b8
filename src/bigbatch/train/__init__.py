"""The only place where the methods meet: one training loop, whole in view."""

from bigbatch.train.state.result import Result
from bigbatch.train.trainer import fit

__all__ = ["Result", "fit"]
