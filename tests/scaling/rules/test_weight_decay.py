"""What the decay of one optimizer is in another."""

import copy

import pytest
import torch

from bigbatch import Recipe, plan
from bigbatch.recipe.sections import KINDS
from bigbatch.scaling.rules.weight_decay import converted_decay, decay_for_shrinkage, total_shrinkage
from bigbatch.train.setup.build import build_optimizer

MLP = Recipe.named("digits/mlp")
FLAT = MLP.replace({"schedule.warmup.kind": "none", "schedule.decay.kind": "constant", "budget.epochs": None, "budget.updates": 100})


def with_optimizer(recipe, name, **fields):
    needed = {"adam_lr": 0.01} if "muon" in name else {}
    return recipe.replace({"optimizer": {"name": name, "lr": 0.1, **needed, **fields}})


def test_hand_worked():  # 100 updates at 0.1 with decay 0.01 shrink by 0.1; SGD's momentum of 0.9 makes it ten times that
    assert total_shrinkage(with_optimizer(FLAT, "adamw", weight_decay=0.01)) == pytest.approx(0.1)
    assert total_shrinkage(with_optimizer(FLAT, "sgd", weight_decay=0.01, momentum=0.9)) == pytest.approx(1.0)
    assert decay_for_shrinkage(with_optimizer(FLAT, "muon"), 1.0) == pytest.approx(0.1)
    halved = FLAT.replace({"schedule.decay": {"kind": "step", "milestones": [FLAT.total_epochs / 2 - 0.001], "factor": 0.5}})
    assert total_shrinkage(with_optimizer(halved, "adamw", weight_decay=0.01)) == pytest.approx(0.075)


@pytest.mark.parametrize("name", ["sgd", "sgdp", "adamw", "adamp", "muon", "soap_muon"])
def test_the_sum_is_what_the_optimizer_does(name):
    """Weights of 1 under the real optimizer with gradients of zero, but for SGD's and Muon's momentum from its decay alone."""
    fields = {"sgd": {"momentum": 0.5}, "sgdp": {"momentum": 0.5, "wd_ratio": 1.0}, "adamp": {"wd_ratio": 1.0}}.get(name, {})
    recipe = with_optimizer(FLAT, name, weight_decay=1e-4, **fields)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = build_optimizer(model, recipe)
    for _ in range(recipe.num_updates):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    shrunk = -torch.log(model[0].weight.mean()).item()
    assert shrunk == pytest.approx(total_shrinkage(recipe), rel=0.02)


@pytest.mark.parametrize(("old", "wants"), [("sgd", 0.01), ("adamw", 1e-4), ("adam", 1e-4), ("muon", 1e-4), ("lamb", 1e-4)])
def test_lars_takes_over_only_a_decay_that_is_in_the_gradient(old, wants):
    """AdamW's 0.1 used to be kept as LARS's, at a cost of six points on the digits."""
    planned = plan(with_optimizer(MLP, old, weight_decay=0.01), global_batch=128, rule="lars")
    assert planned.recipe.optimizer.weight_decay == wants
    kinds = [w.kind for w in planned.warnings]
    assert ("weight decay" in kinds) == (old != "sgd")


@pytest.mark.parametrize("new", ["lars", "lamb", "adam", "adamp", "muon", "soap_muon"])
@pytest.mark.parametrize("old", KINDS["optimizer"])
def test_every_pair_has_a_conversion_or_a_warning(old, new):
    planned = plan(with_optimizer(MLP, old, weight_decay=0.01), global_batch=128, rule=new)
    name = planned.recipe.optimizer.name
    if name == old:
        return
    (row,) = [c for c in planned.changes if c.field == "optimizer.weight_decay"] or [None]
    doubtful = any(w.kind == "weight decay" for w in planned.warnings)
    assert doubtful != converted_decay(planned.reference, planned.recipe).exact
    if doubtful:
        assert planned.recipe.optimizer.weight_decay == KINDS["optimizer"][name].section.published_decay
        assert row is None or "has no equivalent" in row.why
    without = plan(with_optimizer(MLP, old), global_batch=128, rule=new)
    assert without.recipe.optimizer.weight_decay == 0
    assert not any(w.kind == "weight decay" for w in without.warnings)


def test_a_rate_that_is_found_on_the_way_has_no_sum():
    learned = with_optimizer(MLP, "sgd", weight_decay=0.01).replace(
        {"schedule.warmup": {"kind": "autowu"}, "schedule.decay": {"kind": "constant"}}
    )
    assert total_shrinkage(learned) is None
    planned = plan(copy.deepcopy(learned), global_batch=128, rule="muon")
    assert any(w.kind == "weight decay" for w in planned.warnings)
