"""The only place where the methods meet: one training loop, whole in view."""

from bigbatch.train.by_server import by_server
from bigbatch.train.loop import fit as _fit
from bigbatch.train.result import Result

fit = by_server(_fit)

__all__ = ["Result", "fit"]
