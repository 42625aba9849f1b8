import pytest
import torch
from torch.utils.data import TensorDataset

from bigbatch import Recipe
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import RecipeError
from bigbatch.core.clock import Clock
from bigbatch.train.data.label_skew import classes_of, label_shard
from bigbatch.train.data.shares import work_of
from bigbatch.train.data.stream import open_stream


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("num_samples", "world"), [(100, 4), (101, 4), (37, 8)])
def test_every_sample_lies_with_one_worker(skew, num_samples, world):
    targets = torch.arange(num_samples) % 10
    shards = [label_shard(targets, rank, world, skew=skew) for rank in range(world)]
    assert sorted(torch.cat(shards).tolist()) == list(range(num_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_skew_is_the_share_dealt_out_by_label():
    targets = torch.arange(1000) % 10
    counts = [torch.bincount(targets[label_shard(targets, 0, 10, skew=skew)], minlength=10).max().item() for skew in (0.0, 0.5, 1.0)]
    assert counts[0] < 25
    assert counts[2] == 100  # one label only
    assert 50 <= counts[1] <= 65


def test_targets_must_be_classes():
    with pytest.raises(RecipeError, match=r"comm.label_skew: the task's targets are no classes"):
        classes_of(TensorDataset(torch.zeros(4, 2), torch.zeros(4)))
    assert classes_of([(0.0, 3), (0.0, 1)]).tolist() == [3, 1]


def test_a_worker_goes_through_its_own_samples_once_a_pass():
    recipe = Recipe.named("digits/mlp").replace({"batch.global_batch": 40, "comm.label_skew": 1.0, "num_train_samples": 200})
    data = TensorDataset(torch.arange(200.0).reshape(200, 1), torch.arange(200) // 20)
    own = {rank: label_shard(data.tensors[1], rank, 4, skew=1.0).tolist() for rank in range(4)}
    for rank in range(4):

        def work(num_samples, rank=rank):
            return work_of(num_samples, rank, 4, micro_batch=5, ghost_batch=None)

        def seen(clock, updates, work=work, rank=rank):
            return [int(x) for inputs, _ in open_stream(recipe, data, clock, updates, Ranks(rank, 4), work) for x in inputs[:, 0]]

        epoch = seen(Clock(), [40] * 5)
        assert sorted(epoch) == own[rank]
        assert seen(Clock(updates=2, samples=80), [40] * 3) == epoch[20:]  # resumed
        assert sorted(seen(Clock(updates=5, samples=200), [40] * 5)) == own[rank]
        assert seen(Clock(updates=5, samples=200), [40] * 5) != epoch  # in another order
