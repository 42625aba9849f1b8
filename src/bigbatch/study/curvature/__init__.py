"""How the training loss bends where runs ended."""

from bigbatch.study.curvature.curvature import curvature
from bigbatch.study.curvature.study import CurvatureStudy

__all__ = ["CurvatureStudy", "curvature"]
