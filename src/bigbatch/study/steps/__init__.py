"""Updates to a target over all batches, every setting tuned anew at each (Shallue et al. 2018)."""

from bigbatch.study.steps.space import Choice, Range
from bigbatch.study.steps.steps import steps
from bigbatch.study.steps.study import StepsStudy

__all__ = ["Choice", "Range", "StepsStudy", "steps"]
