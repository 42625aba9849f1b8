import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import constant_warmup


def test_hand_worked():  # Goyal's constant warm-up at 8k: 0.1 of 3.2, then the jump
    lrs = [3.2 * constant_warmup(Clock(samples=s), warmup_samples=5, factor=1 / 32) for s in (0, 4, 5, 6)]
    assert lrs == pytest.approx([0.1, 0.1, 3.2, 3.2])


def test_refuses_a_factor_above_one():
    with pytest.raises(UserError, match="factor = 2: must lie from 0 to 1"):
        constant_warmup(Clock(), warmup_samples=5, factor=2)
