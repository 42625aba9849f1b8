"""The critical batch at points of one run, by branches from its checkpoints."""

from bigbatch.study.branches.branches import branches
from bigbatch.study.branches.study import BranchStudy

__all__ = ["BranchStudy", "branches"]
