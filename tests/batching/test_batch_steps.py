import pytest

from bigbatch.batching import BatchSteps
from bigbatch.batching.batch_steps import rate_factor
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock


def test_hand_worked_rate_factors():
    assert [rate_factor(2048, 512, how) for how in ("none", "linear", "sqrt")] == [1.0, 4.0, 2.0]


def test_olmo_s_warm_up():
    """1,024 -> 2,048 at 168 B tokens -> 4,096 at 503 B tokens of 4,096 a sample; the rate times the root of two each (Merrill et al.)."""
    at = BatchSteps(global_batch=1024, steps=[(41_015_625, 2048), (122_802_734, 4096)]).at
    found = [at(Clock(int(tokens * 1e9 / 4096))) for tokens in (0, 167.9, 168.1, 502.9, 503.1, 600)]
    assert [each.global_batch for each in found] == [1024, 1024, 2048, 2048, 4096, 4096]
    assert [each.rate_factor for each in found] == pytest.approx([1, 1, 2**0.5, 2**0.5, 2, 2], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": []}, "steps begin at"),
        ({"steps": [(20, 16), (10, 32)]}, "must be one step or more, at ascending numbers"),
        ({"steps": [(0, 16)]}, "above zero"),
        ({"steps": [(10, 0)]}, "steps: batch = 0"),
        ({"steps": [(10, 16)], "lr": "root"}, "unknown lr 'root'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        BatchSteps(global_batch=8, **settings)
