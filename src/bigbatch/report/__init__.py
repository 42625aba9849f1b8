"""HTML reports from what runs and studies recorded."""

from bigbatch.report.report import write_report

__all__ = ["write_report"]
