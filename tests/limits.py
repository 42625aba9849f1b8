"""How long a test may take, so that a busy machine does not fail one that is right.

No test needs more than a minute on an idle machine with two cores; `timeout` in pyproject.toml is ten times as long. What a test starts is
given a little less, so that it is this that is told, with what it said, and not the test that is broken off.
"""

LIMIT_S = 560
"""Seconds that processes which a test starts, and what it waits for, may take."""
