"""HTML reports and plots from what runs and studies recorded."""

from typing import TYPE_CHECKING, Any

from bigbatch.core.extras import needed

with needed("a report", extra="report"):
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401

if TYPE_CHECKING:
    from bigbatch.report.report import leave_report, write_report

__all__ = ["leave_report", "write_report"]


def __getattr__(name: str) -> Any:
    """These two on first use: plots alone need no torch."""
    if name in __all__:
        from bigbatch.report import report

        return getattr(report, name)
    raise AttributeError(f"module 'bigbatch.report' has no attribute {name!r}")
