import pytest

from bigbatch.batching import LateSwitch
from bigbatch.batching.late_switch import samples_before
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock


def test_hand_worked():
    assert samples_before(0.8, 10_000) == 8000
    late = LateSwitch(global_batch=64, largest=1024, after=0.8, total_samples=10_000)
    assert [tuple(late.at(Clock(s))) for s in (0, 7999, 8000, 9999)] == [(64, 1.0), (64, 1.0), (1024, 4.0), (1024, 4.0)]


def test_bad_settings():
    with pytest.raises(UserError, match="after = 1.0: must lie between 0 and 1"):
        LateSwitch(global_batch=64, largest=128, after=1.0, total_samples=100)
