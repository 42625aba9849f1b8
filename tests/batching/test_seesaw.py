import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.batching import BatchAndRate, Seesaw
from bigbatch.batching.seesaw import seesaw
from bigbatch.core.checks import UserError


def test_hand_worked():
    """Halved once and twice: rate over root two and over two; then the batch may not grow, and the rate takes all of the halving."""
    grow = Seesaw(global_batch=256, largest=1024)
    found = [grow.at(decay) for decay in (1.0, 0.5, 0.25, 0.125)]
    assert [each.global_batch for each in found] == [256, 512, 1024, 1024]
    assert [each.rate_factor for each in found] == pytest.approx([1.0, 1 / math.sqrt(2), 0.5, 0.25], rel=1e-12)


@given(decay=st.floats(1e-3, 1), first=st.integers(1, 50), unit=st.sampled_from([1, 8, 32]), most=st.integers(1, 100))
def test_rate_over_the_root_of_the_batch_is_kept(decay, first, unit, most):
    batch, factor = seesaw(first * unit, decay, max(first, most) * unit, unit)
    assert factor / math.sqrt(batch) == pytest.approx(decay / math.sqrt(first * unit), rel=1e-12)
    assert batch % unit == 0


def test_without_growth_nothing_changes():
    assert Seesaw(global_batch=64, largest=64).at(0.3) == BatchAndRate(64, 0.3)


def test_bad_decay():
    with pytest.raises(UserError, match=r"decay = 1.5"):
        Seesaw(global_batch=64, largest=128).at(1.5)
