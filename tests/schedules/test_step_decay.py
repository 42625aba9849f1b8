import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import step_decay


def test_goyals_schedule():  # times 0.1 at epochs 30, 60, 80 of ImageNet's 1,281,167 images
    n = 1_281_167
    factors = [step_decay(Clock(samples=e * n), milestones=[30 * n, 60 * n, 80 * n]) for e in (0, 29, 30, 60, 80, 90)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])


def test_refuses_a_negative_factor():
    with pytest.raises(UserError, match="factor = -1: must lie from 0 to 1"):
        step_decay(Clock(), milestones=[1], factor=-1)
