"""Names of files in a run's folder that others look for without torch."""

RUNNER = "runner.json"
"""Of a function or a command: what was run."""
