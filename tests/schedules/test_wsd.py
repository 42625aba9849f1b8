import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import wsd


@pytest.mark.parametrize(("shape", "half"), [("sqrt", 1 - math.sqrt(0.5)), ("linear", 0.5), ("cosine", 0.5)])
def test_hand_worked(shape, half):  # 1,000 samples, of which the last 200 decay
    factors = [wsd(Clock(samples=s), total_samples=1000, decay_samples=200, shape=shape) for s in (0, 500, 800, 900, 1000, 1100)]
    assert factors == pytest.approx([1, 1, 1, half, 0, 0])
    quarter = {"sqrt": 0.5, "linear": 0.75, "cosine": (1 + math.sqrt(0.5)) / 2}[shape]
    assert wsd(Clock(samples=850), total_samples=1000, decay_samples=200, shape=shape) == pytest.approx(quarter)
    assert wsd(Clock(samples=900), total_samples=1000, decay_samples=200, shape=shape, final_factor=0.1) == pytest.approx(0.1 + 0.9 * half)


@given(st.sampled_from(["sqrt", "linear", "cosine"]), st.integers(0, 1200), st.integers(1, 1000), st.floats(0, 1))
def test_never_rises_and_ends_at_the_final_factor(shape, samples, length, final):
    def at(s):
        return wsd(Clock(samples=s), total_samples=1000, decay_samples=length, shape=shape, final_factor=final)

    assert at(samples + 1) <= at(samples) <= 1
    assert at(1000) == pytest.approx(final)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay_samples": 0}, "decay_samples = 0: must be above zero and at most total_samples = 100"),
        ({"decay_samples": 101}, "decay_samples = 101: must be above zero"),
        ({"decay_samples": 10, "shape": "root"}, "unknown shape 'root'"),
        ({"decay_samples": 10, "final_factor": 2}, "final_factor = 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        wsd(Clock(), total_samples=100, **arguments)
