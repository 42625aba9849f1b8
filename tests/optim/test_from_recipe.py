import re

import pytest
import torch
from torch import nn

from bigbatch import Recipe, UserError, build_optimizer
from bigbatch.core.methods import OPTIMIZERS

RECIPE = Recipe.named("digits/mlp")
OTHER_WAYS = {
    "local SGD": {"comm.kind": "local_sgd"},
    "gossip": {"comm.kind": "gossip"},
    "sharded": {"comm.kind": "fully_shard"},
    "parameter server": {"comm.kind": "parameter_server"},
    "compressed": {"comm.compression": {"kind": "powersgd"}},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_recipes_settings(name):
    settings = {"optimizer.name": name, "optimizer.lr": 0.03, "optimizer.weight_decay": 0.02}
    recipe = RECIPE.replace({**settings, **({"optimizer.adam_lr": 0.01} if "muon" in name else {})})
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    optimizer = build_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__.lower() == name.replace("_", "")
    assert {group["lr"] for group in optimizer.param_groups} == ({0.03, 0.01} if "muon" in name else {0.03})
    assert 0.02 in {group["weight_decay"] for group in optimizer.param_groups}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_pattern_that_matches_nothing_is_refused():
    recipe = RECIPE.replace({"optimizer.groups": {"embedding*": "norms_and_biases"}})
    with pytest.raises(UserError, match="embedding"):
        build_optimizer(nn.Linear(8, 2), recipe)


@pytest.mark.parametrize("changes", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_what_is_no_part_of_an_optimizer_is_refused_with_a_remedy_that_works(changes):
    recipe = RECIPE.replace(changes)
    with pytest.raises(UserError, match="is not part of an optimizer") as refused:
        build_optimizer(nn.Linear(8, 2), recipe)
    (field, value), *_ = changes.items()
    assert f'"{value if isinstance(value, str) else value["kind"]}"' in str(refused.value)
    remedy = re.search(r"recipe\.replace\((\{.*?\})\)", str(refused.value)).group(1)
    build_optimizer(nn.Linear(8, 2), recipe.replace(eval(remedy)))
    assert field.startswith("comm.")
