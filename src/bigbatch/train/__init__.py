"""The only place where the methods meet: one training loop, whole in view."""

from bigbatch.train.loop import Result, fit

__all__ = ["Result", "fit"]
