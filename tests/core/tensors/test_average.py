import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.average import RunningMean


def test_hand_worked():  # decay 1/2: after 8 and 2, (0.25 * 8 + 0.5 * 2) / 0.75 = 4
    mean = RunningMean(decay=0.5).update(8.0).update(2.0)
    assert mean.value == 4.0
    assert mean.weight == 0.75


@given(value=st.floats(-1e6, 1e6), decay=st.floats(0, 0.999), times=st.integers(1, 50))
def test_a_constant_is_its_own_mean_from_the_first_value_on(value, decay, times):
    mean = RunningMean(decay)
    for _ in range(times):
        mean = mean.update(value)
    assert mean.value == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_before_the_first_value_it_is_not_a_number():
    assert math.isnan(RunningMean(0.9).value)


def test_refuses_a_decay_above_one():
    with pytest.raises(UserError, match="decay = 1.1: must lie from 0 to 1"):
        RunningMean(1.1).update(1.0)
