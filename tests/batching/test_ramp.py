import pytest

from bigbatch.batching import BatchAndRate, Ramp
from bigbatch.batching.ramp import ramped
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock


def test_hand_worked():  # 32 + (288 - 32) 250 / 1000 = 96
    assert ramped(250, global_batch=32, largest=288, over_samples=1000) == 96.0
    assert ramped(5000, global_batch=32, largest=288, over_samples=1000) == 288.0
    ramp = Ramp(global_batch=32, largest=288, over_samples=1000, multiple_of=32, lr="linear")
    assert [tuple(ramp.at(Clock(s))) for s in (0, 249, 300, 1000)] == [(32, 1.0), (96, 3.0), (96, 3.0), (288, 9.0)]


def test_it_ends_at_the_largest_which_is_no_multiple():
    ramp = Ramp(global_batch=32, largest=100, over_samples=1000, multiple_of=16)
    assert [ramp.at(Clock(s)).global_batch for s in (0, 500, 999, 1000, 5000)] == [32, 64, 96, 100, 100]


def test_without_growth_nothing_changes():
    assert Ramp(global_batch=64, largest=64, over_samples=10).at(Clock(5)) == BatchAndRate(64, 1.0)


@pytest.mark.parametrize(("settings", "message"), [({"largest": 32}, "largest = 32: must be"), ({"over_samples": 0}, "over_samples = 0")])
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Ramp(**{"global_batch": 64, "largest": 128, "over_samples": 100} | settings)
