import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Recipe
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.layers import convert_batch_norm
from bigbatch.layers.precise_statistics import population
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.update.recomputed_statistics import RecomputedStatistics

RECIPE = Recipe.named("fashion_mnist/resnet8").replace(
    {"num_train_samples": 64, "batch.global_batch": 32, "batch.ghost_batch": 8, "precision": "float32"}
)


def model():
    torch.manual_seed(0)
    return convert_batch_norm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), ghost_batch=8)


def data():
    return TensorDataset(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(64, dtype=torch.long))


def recomputed(net, ranks=SINGLE_PROCESS, micro_batch=16):
    statistics = RecomputedStatistics(net, ranks, recipe=RECIPE, train=data(), task=load_task("digits/mlp"))
    statistics.micro_batch = micro_batch
    with statistics.combined():
        return copy.deepcopy(net[1].state_dict())


def test_those_of_the_same_samples_whatever_training_left():
    net = model()
    net.train()
    net(torch.full((16, 3), 100.0))
    state = torch.get_rng_state()
    found = recomputed(net)
    assert torch.equal(torch.get_rng_state(), state)
    values = net[0](data().tensors[0][sample_indices(RECIPE.seed, 64, 0, 64)]).detach()
    torch.testing.assert_close(found["running_mean"], values.mean(0))
    torch.testing.assert_close(found["running_var"], values.var(0, correction=0))
    assert net.training


@pytest.mark.parametrize("micro_batch", [8, 64])
def test_the_cut_into_passes_does_not_matter(micro_batch):
    for key, value in recomputed(model(), micro_batch=micro_batch).items():
        torch.testing.assert_close(value, recomputed(model())[key])


def test_several_workers_share_the_pass(monkeypatch):
    """Each adds its part; here the parts are added by hand."""
    parts = []

    def keep(self, values):
        parts.append(values.clone())
        return values

    monkeypatch.setattr(Ranks, "sum_", keep)
    for rank in range(3):
        recomputed(
            model(), SimpleNamespace(rank=rank, world_size=3, device=torch.device("cpu"), sum_=lambda v: keep(None, v), is_rank_0=True)
        )
    monkeypatch.undo()
    expected = recomputed(model())
    mean, var = population(torch.stack(parts).sum(0).view(3, -1))
    torch.testing.assert_close(mean.float(), expected["running_mean"])
    torch.testing.assert_close(var.float(), expected["running_var"])
