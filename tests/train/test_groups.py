"""Groups of parameters in a run: by default, by a recipe's patterns, in its record and on the screen."""

import pytest
import torch
from tests.cli.command import bigbatch

from bigbatch import Recipe, fit
from bigbatch.core.checks import UserError
from bigbatch.tasks import load_task
from bigbatch.train.setup.build import build_model, build_optimizer
from bigbatch.train.state.record import read_record

SGD = Recipe.named("digits/mlp").replace({"batch.micro_batch": 32, "budget.epochs": 0.1})
MUON = SGD.replace({"optimizer.name": "muon", "optimizer.adam_lr": 0.01})


def optimizer_of(recipe):
    model = build_model(load_task(recipe.task), recipe)
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in build_optimizer(model, recipe).param_groups]


def test_a_recipe_moves_parameters_by_name():
    assert optimizer_of(MUON) == [["1.weight"], ["1.bias", "3.weight", "3.bias"]]
    assert optimizer_of(MUON.replace({"optimizer.groups.1.*": "adam", "optimizer.groups.3.weight": "muon"})) == [
        ["3.weight"],
        ["1.weight", "1.bias", "3.bias"],
    ]
    decays = SGD.replace({"optimizer.weight_decay": 0.1, "optimizer.decay_norms_and_biases": False})
    assert optimizer_of(decays) == [["1.weight", "3.weight"], ["1.bias", "3.bias"]]
    assert optimizer_of(decays.replace({"optimizer.groups.3.weight": "norms_and_biases"})) == [
        ["1.weight"],
        ["1.bias", "3.weight", "3.bias"],
    ]


@pytest.mark.parametrize("recipe", [MUON, SGD])
def test_a_pattern_that_matches_nothing_is_an_error(recipe):
    value = "muon" if recipe is MUON else "weights"
    with pytest.raises(UserError, match=r"pattern '\*.4.weight': matches no parameter; near it are "):
        fit("digits/mlp", recipe.replace({"optimizer.groups.*.4.weight": value}), quiet=True)


def test_the_record_and_the_screen_show_the_groups(tmp_path, capsys):
    fit("digits/mlp", MUON, out=tmp_path, tensorboard=False, quiet=False)
    start = read_record(tmp_path / "record.jsonl")[0]
    shown = {(part["group"], part["why"]): (part["tensors"], part["values"], part["names"]) for part in start["groups"]}
    assert shown == {
        ("muon", "linear"): (1, 8192, "1.weight"),
        ("adam", "bias"): (2, 138, "1.bias, 3.bias"),
        ("adam", "output layer, no other layer consumes its output"): (1, 1280, "3.weight"),
    }
    assert start["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "digits/mlp: muon updates 1.weight (linear)" in capsys.readouterr().err


def test_a_plan_shows_the_groups():
    shown = bigbatch("plan", "digits/mlp", "--global-batch", 256, "--rule", "muon", "--groups").stdout
    assert "output layer, no other layer consumes its output" in shown
    assert "1 of 128x64" in shown
    assert "--groups" in bigbatch("plan", "digits/mlp", "--global-batch", 256, "--rule", "muon").stdout
