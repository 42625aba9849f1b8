"""All runs below a folder, and the table of them."""

from bigbatch.study.all_runs.runs import runs
from bigbatch.study.all_runs.table import RunsTable

__all__ = ["RunsTable", "runs"]
