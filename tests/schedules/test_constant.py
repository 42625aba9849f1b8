from bigbatch.core.clock import Clock
from bigbatch.schedules import constant


def test_is_one_throughout():
    assert {constant(Clock(samples=s)) for s in (0, 1, 10**9)} == {1.0}
