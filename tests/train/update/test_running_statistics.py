"""Parts of running statistics: what a checkpoint has of them, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bigbatch.train.update.running_statistics import RunningStatistics


def part(rank, world, model):
    return RunningStatistics(model, SimpleNamespace(rank=rank, world_size=world, is_rank_0=rank == 0, sum_=lambda buffer: buffer.mul_(2)))


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 3))
    return net


def test_the_parts_of_a_run_that_begins_add_up_to_what_the_model_has():
    whole = model()[1].running_mean
    parts = [part(rank, 2, net) and net[1].running_mean for rank, net in enumerate((model(), model()))]
    assert torch.equal(parts[0] + parts[1], whole)
    assert parts[0].any()
    assert not parts[1].any()


def test_combining_leaves_the_part_as_it_was_and_a_checkpoint_has_the_part():
    net = model()
    statistics = part(0, 2, net)
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    assert sorted(before) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    with statistics.combined():
        assert torch.equal(net[1].running_mean, 2 * before["1.running_mean"])
        assert all(torch.equal(value, before[name]) for name, value in statistics.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in statistics.state_dict().items())


def test_a_part_is_left_as_it_was_if_an_evaluation_fails():
    net = model()
    statistics, before = part(0, 2, net), net[1].running_mean.clone()
    with pytest.raises(ZeroDivisionError), statistics.combined():
        raise ZeroDivisionError
    assert torch.equal(net[1].running_mean, before)


def test_each_worker_takes_up_its_own_part():
    states = [part(0, 2, model()).state_dict(), {name: value + 1 for name, value in part(0, 2, model()).state_dict().items()}]
    net = model()
    part(1, 2, net).load_state_dicts(states)
    assert torch.equal(net[1].running_mean, states[1]["1.running_mean"])


@pytest.mark.parametrize("states", [[{}, {}], [{"1.running_mean": torch.zeros(4)}] * 3])
def test_parts_of_other_workers_are_one_whole(states):
    for rank in range(2):
        net = model()
        part(rank, 2, net).load_state_dicts(states)
        assert net[1].running_mean.any() == (rank == 0)


@pytest.mark.parametrize(
    "damaged", [None, 3.0, torch.zeros(5), torch.zeros(4, dtype=torch.float64), torch.full((4,), float("nan"))], ids=lambda v: str(v)[:20]
)
def test_a_part_of_another_model_is_refused(damaged):
    state = dict(part(0, 2, model()).state_dict()) | {"1.running_mean": damaged}
    with pytest.raises(ValueError, match=r"workers.1.statistics.1.running_mean: must be a finite tensor of shape \(4,\)"):
        part(1, 2, model()).load_state_dicts([state, state])


def test_a_single_worker_has_no_part():
    statistics = part(0, 1, model())
    assert statistics.state_dict() == {}
    statistics.load_state_dicts([{}])
