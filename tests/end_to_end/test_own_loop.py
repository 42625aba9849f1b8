"""A hand-written loop with `bigbatch.build_optimizer` and `build_scheduler` ends in the weights of `bigbatch.fit`, to the last bit."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tests.limits import LIMIT_S

import bigbatch
from bigbatch.core.tensors.alignment import aligned
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import sample_indices

PLAIN = bigbatch.Recipe.named("digits/mlp").replace({"budget.epochs": 1.5, "batch.micro_batch": 32, "model.hidden": 16})
BETAS = {"optimizer.lr": 0.01, "optimizer.weight_decay": 0.1}
GRADUAL = {"schedule.warmup.kind": "gradual", "schedule.warmup.epochs": 0.5}
SGD = {"optimizer.lr": 0.2, "optimizer.momentum": 0.9}
RECIPES = {
    "sgd, cosine": {**SGD, **GRADUAL, "schedule.decay.kind": "cosine"},
    "sgd, clipped": {**SGD, "optimizer.clip_norm": 0.5},
    "sgd, a budget in updates": {**SGD, "budget.epochs": None, "budget.updates": 20, "schedule.decay.kind": "linear"},
    "adam, constant": {"optimizer.name": "adam", "optimizer.lr": 0.01, "schedule.warmup.kind": "none", "schedule.decay.kind": "constant"},
    "adamw, wsd": {"optimizer.name": "adamw", **BETAS, **GRADUAL, "schedule.decay.kind": "wsd", "schedule.decay.decay_fraction": 0.5},
    "adamw, groups by name": {
        "optimizer.name": "adamw",
        **BETAS,
        "optimizer.decay_norms_and_biases": False,
        "optimizer.groups": {"*.bias": "weights"},
        "schedule.decay.kind": "linear",
    },
    "muon, wsd": {"optimizer.name": "muon", **BETAS, "optimizer.adam_lr": 0.003, **GRADUAL, "schedule.decay.kind": "wsd"},
    "muon, groups by name": {"optimizer.name": "muon", **BETAS, "optimizer.adam_lr": 0.003, "optimizer.groups": {"*weight": "adam"}},
    "lars, polynomial": {
        "optimizer.name": "lars",
        "optimizer.lr": 2.0,
        "optimizer.weight_decay": 0.001,
        "schedule.decay.kind": "polynomial",
    },
    "lamb, product": {"optimizer.name": "lamb", **BETAS, **GRADUAL, "schedule.decay.kind": "cosine", "schedule.combine": "product"},
    "adamp, step": {
        "optimizer.name": "adamp",
        **BETAS,
        "schedule.warmup": {"kind": "constant", "epochs": 0.25, "factor": 0.1},
        "schedule.decay": {"kind": "step", "milestones": [1.0], "factor": 0.5},
    },
    "sgdp, float64": {"optimizer.name": "sgdp", **SGD, **GRADUAL, "precision": "float64"},
}


def own_loop(recipe, *, forgets_a_step=False):
    """Weights after the recipe's updates, and the rates that they were made at."""
    train = load_task("digits/mlp").splits().train
    dtype = {"float32": torch.float32, "float64": torch.float64}[recipe.precision]
    torch.manual_seed(recipe.seed)
    model = load_task("digits/mlp").model(**recipe.model).to(dtype)
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    rates = []
    for start in range(0, recipe.total_samples, recipe.batch.global_batch):
        count = min(recipe.batch.global_batch, recipe.total_samples - start)
        index = sample_indices(recipe.seed, recipe.num_train_samples, start, count)
        inputs, targets = (tensor[index] for tensor in train.tensors)
        losses = F.cross_entropy(model(aligned(inputs.to(dtype))), targets, reduction="none")
        losses.backward(torch.full_like(losses, 1 / count))
        if recipe.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        optimizer.zero_grad()
        if start or not forgets_a_step:
            scheduler.step()
    return model.state_dict(), rates


def weights_of_fit(recipe, folder):
    bigbatch.fit("digits/mlp", recipe, out=folder, quiet=True, tensorboard=False, measure_test=False)
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_a_hand_written_loop_ends_in_the_same_bits_as_fit(tmp_path, changes):
    recipe = PLAIN.replace(changes)
    own, rates = own_loop(recipe)
    assert equal(own, weights_of_fit(recipe, tmp_path))
    if recipe.schedule.decay.kind != "constant":
        assert rates[0] != rates[-1]
        assert not equal(own, own_loop(recipe, forgets_a_step=True)[0])  # so small a mistake is seen


def test_a_planned_recipe_too(tmp_path):
    recipe = bigbatch.plan(PLAIN, global_batch=128, rule="legw").recipe.replace({"batch.micro_batch": 128})
    assert equal(own_loop(recipe)[0], weights_of_fit(recipe, tmp_path))


def test_a_stopped_loop_goes_on_where_it_was():
    recipe = PLAIN.replace({**GRADUAL, "schedule.decay.kind": "cosine"})
    rates = []
    for stopped in (False, True):
        model = torch.nn.Linear(64, 10)
        optimizer = bigbatch.build_optimizer(model, recipe)
        scheduler = bigbatch.build_scheduler(optimizer, recipe)
        for update in range(30):
            if stopped and update == 13:
                states = optimizer.state_dict(), scheduler.state_dict()
                optimizer = bigbatch.build_optimizer(model, recipe)
                scheduler = bigbatch.build_scheduler(optimizer, recipe)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            optimizer.step()
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] != recipe.optimizer.lr


def test_no_trainer_is_imported():
    code = "import sys, bigbatch; bigbatch.build_optimizer, bigbatch.build_scheduler; assert 'bigbatch.train' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
