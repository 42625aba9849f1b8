"""For tests of training loops.

from bigbatch.testing import assert_same_update

def test_my_loop():
    assert_same_update(train)               # however its batch is cut: micro-batches, ragged ends, workers
"""

from collections.abc import Callable, Collection
from typing import Any

from bigbatch.check import Probe, Report, check, probe

__all__ = ["Probe", "assert_same_update", "probe"]


def assert_same_update(
    function: Callable[[Probe], Any], *, workers: Collection[int] = (1, 2, 4), allow: Collection[str] = (), time_limit_s: float = 60.0
) -> Report:
    """Assert that a loop makes the same update however its batch is cut; see `bigbatch.check.check`.

    Args:
        function: The loop, called as `function(probe)`.
        workers: Numbers of workers.
        allow: What may differ by design: "dropout", "batch_norm".
        time_limit_s: Of one run.

    Returns:
        The report.

    Raises:
        AssertionError: If it does not; with the culprits, each in a sentence with its remedy.
        UserError: If it can't be run.
    """
    __tracebackhide__ = True
    report = check(function, workers=workers, allow=allow, time_limit_s=time_limit_s)
    if not report.same:
        raise AssertionError(report.sentence())
    return report
