"""What ways to train on many workers would cost."""

from bigbatch.study.simulate.simulate import simulate

__all__ = ["simulate"]
