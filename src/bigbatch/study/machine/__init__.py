"""A look at the machine before runs: what it has, how fast it is, and what that means."""

from bigbatch.study.machine.doctor import examine

__all__ = ["examine"]
