"""Does a training loop make the same update however its batch is cut? `bigbatch check`; see `checker.check`."""

from bigbatch.check.checker import check
from bigbatch.check.probe import Probe, probe
from bigbatch.check.report import Culprit, Report, Row

__all__ = ["Culprit", "Probe", "Report", "Row", "check", "probe"]
