import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import linear


def test_hand_worked():
    assert [linear(Clock(samples=s), total_samples=8) for s in (0, 2, 8, 9)] == [1, 0.75, 0, 0]
    assert linear(Clock(samples=4), total_samples=8, final_factor=0.2) == pytest.approx(0.6)


def test_refuses_a_final_factor_above_one():
    with pytest.raises(UserError, match="final_factor = 1.1: must lie from 0 to 1"):
        linear(Clock(), total_samples=8, final_factor=1.1)
