import math

import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import cosine


def test_hand_worked():  # a third of the way: (1 + cos 60 degrees) / 2 = 3/4
    assert cosine(Clock(samples=20), total_samples=60) == pytest.approx(0.75, rel=1e-12)
    assert cosine(Clock(samples=20), total_samples=60, final_factor=0.2) == pytest.approx(0.2 + 0.8 * 0.75)


def test_ends_at_the_final_factor_and_stays():
    assert cosine(Clock(samples=60), total_samples=60, final_factor=0.1) == pytest.approx(0.1)
    assert cosine(Clock(samples=600), total_samples=60, final_factor=0.1) == pytest.approx(0.1)


def test_is_symmetric_about_the_middle():
    for s in range(51):
        both = cosine(Clock(samples=s), total_samples=100) + cosine(Clock(samples=100 - s), total_samples=100)
        assert math.isclose(both, 1, abs_tol=1e-12)


def test_refuses_a_negative_length():
    with pytest.raises(UserError, match="total_samples = -5: must be a finite number above zero"):
        cosine(Clock(), total_samples=-5)
