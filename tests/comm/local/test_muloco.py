import pytest
import torch
from tests.comm.local.test_diloco import trained
from torch import nn

from bigbatch import Recipe
from bigbatch.comm.local.diloco import DiLoCo
from bigbatch.comm.local.muloco import MuLoCo
from bigbatch.core.checks import RecipeError
from bigbatch.optim import Muon


def with_muon(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return Muon(matrices, lr=0.1)


def test_it_is_diloco_over_muon_with_its_own_settings():
    own, same, other = (
        trained(make, make_optimizer=with_muon)
        for make in (
            lambda m: MuLoCo(m, period=4),
            lambda m: DiLoCo(m, period=4, outer_lr=0.7, outer_momentum=0.6),
            lambda m: DiLoCo(m, period=4, outer_lr=0.7, outer_momentum=0.9),
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(own, same, strict=True))
    assert not torch.equal(own[0], other[0])


def test_the_displacement_is_that_of_the_period():
    """Two steps of Muon from the outer weights: one worker's displacement is what they moved."""
    model = nn.Linear(3, 3, bias=False)
    comm, optimizer, before = MuLoCo(model, period=10), Muon(model.parameters(), lr=0.1), model.weight.detach().clone()
    for update in range(2):
        model(torch.ones(1, 3)).sum().backward()
        comm.before_step(optimizer)
        optimizer.step()
        comm.after_step(optimizer, update + 1)
    torch.testing.assert_close(comm.displacement(0).view(3, 3), before - model.weight.detach())


def test_another_optimizer_is_refused():
    with pytest.raises(RecipeError, match='comm.kind = "muloco" with optimizer.name = "sgd": has Muon inside'):
        Recipe.named("digits/mlp").replace({"comm": {"kind": "muloco"}})
