import pytest
from torch import nn

from bigbatch.comm.local.local_sgd import LocalSGD, next_average
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError


def test_hand_worked():  # period 3, the first 4 updates by all-reduce
    assert [t for t in range(1, 13) if t == next_average(t - 1, period=3, start_updates=4)] == [7, 10]
    assert [next_average(t, period=1) for t in range(4)] == [1, 2, 3, 4]


def test_alone_every_step_is_everyones():
    comm = LocalSGD(nn.Linear(1, 1), period=4)
    assert not comm.weights_differ
    assert comm.divisor(12, 12) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 0}, "period = 0"),
        ({"period": 8, "group_period": 3}, "group_period = 3: must divide period = 8"),
        ({"group_size": 3}, "group_size = 3: must divide the 4 workers"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        LocalSGD(nn.Linear(1, 1), Ranks(0, 4), **settings)
