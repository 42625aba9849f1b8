"""How large a batch is worth it: updates to a target at several batches, and what follows from the fit."""

from bigbatch.study.critical.critical import critical
from bigbatch.study.critical.study import CriticalStudy

__all__ = ["CriticalStudy", "critical"]
