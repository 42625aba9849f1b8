import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import linear, polynomial


def test_hand_worked():  # (1 - 1/4)^2 = 9/16
    assert polynomial(Clock(samples=25), total_samples=100) == 0.5625
    assert polynomial(Clock(samples=25), total_samples=100, final_factor=0.5) == 0.5 + 0.5 * 0.5625


def test_power_one_is_linear():
    for s in range(0, 130, 10):
        assert polynomial(Clock(samples=s), total_samples=100, power=1) == pytest.approx(linear(Clock(samples=s), total_samples=100))


def test_refuses_no_length():
    with pytest.raises(UserError, match="total_samples = 0: must be a finite number above zero"):
        polynomial(Clock(), total_samples=0)
