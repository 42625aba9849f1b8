"""Transformers' Trainer with the callback against a loop of one's own, on the same samples in the same order."""

import json
import math

import pytest
import torch
from tests.integrations.models import tokens
from tests.integrations.own_loop import own_loop
from tests.integrations.processes import torchrun
from tests.integrations.trainer_run import GROWING, facts, recipe_of, trainer_of

from bigbatch import Clock
from bigbatch.schedules.from_recipe import schedule_of

UPDATES = [16, 16, 8] * 3
"""Samples of each: the last of an epoch is short."""


@pytest.fixture(autouse=True)
def _no_accelerator_left():
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def planned_rates(recipe, updates=UPDATES):
    clock, rates = Clock(), []
    for num_samples in updates:
        rates.append(recipe.optimizer.lr * schedule_of(recipe)(clock))
        clock = clock.after(num_samples)
    return rates


def near(found, expected, tolerance):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3) or (math.isnan(a) and math.isnan(b)), (a, b)


def compare(found, own, tolerance):
    """Noise of each update, of the whole and of each layer, and what was logged."""
    assert len(found["measured"]) == len(own["measured"]) == len(UPDATES)
    for mine, theirs in zip(found["measured"], own["measured"], strict=True):
        near(mine, theirs, tolerance)
    for entry, scale, layers in zip(found["logs"], own["scales"], own["layers"], strict=True):
        expected = {"noise_scale": scale} | {f"noise_scale/{name}": value for name, value in layers.items()}
        for name, value in expected.items():
            assert (name in entry) == math.isfinite(value), name
            if name in entry:
                assert entry[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("kind", ["gpt2", "resnet"])
def test_noise_and_rates_are_those_of_ones_own_loop(kind, tmp_path):
    trainer, callback = trainer_of(kind, tmp_path, layers=True)
    trainer.train()
    found, own, recipe = facts(trainer, callback), own_loop(kind, recipe_of()), recipe_of()
    assert min(own["norms"]) > recipe.optimizer.clip_norm  # every update is clipped
    compare(found, own, 1e-9)
    near([entry["learning_rate"] for entry in found["logs"]], planned_rates(recipe), 1e-12)
    assert planned_rates(recipe) == own["rates"]
    assert found["clock"] == [120, 9]
    weights = torch.cat([p.detach().flatten() for p in own["weights"].parameters()])
    near(found["weights"], weights.tolist(), 1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "resnet"])
def test_resumed_in_the_middle_of_an_epoch_all_is_the_same(kind, tmp_path):
    shuffled = {"train_sampling_strategy": "random", "save_strategy": "steps", "save_steps": 4}
    trainer, callback = trainer_of(kind, tmp_path, layers=True, **shuffled)
    trainer.train()
    whole = facts(trainer, callback)
    trainer, callback = trainer_of(kind, tmp_path, layers=True, **shuffled)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = facts(trainer, callback)
    for name in ("learning_rate", "noise_scale", "noise_scale_lower", "noise_scale_upper", "epoch", "step"):
        assert [e.get(name) for e in resumed["logs"]] == [e.get(name) for e in whole["logs"]], name
    assert repr(resumed["measured"]) == repr(whole["measured"])  # NaN is equal to NaN so
    assert resumed["weights"] == whole["weights"]
    near([entry["learning_rate"] for entry in resumed["logs"]], planned_rates(recipe_of()), 1e-12)


@pytest.mark.parametrize(("kind", "how", "tolerance"), [("gpt2", "resumed", 1e-9), ("resnet", "ddp", 1e-9), ("gpt2", "fsdp", 1e-9)])
def test_two_processes_measure_the_same_noise_at_the_same_rates(kind, how, tolerance, tmp_path):
    torchrun("tests.integrations.trainer_run", kind, tmp_path / "facts.json", how, folder=tmp_path)
    found, own = json.loads((tmp_path / "facts.json").read_text()), own_loop(kind, recipe_of())
    compare(found, own, tolerance)
    near([entry["learning_rate"] for entry in found["logs"]], planned_rates(recipe_of()), 1e-12)
    assert found["clock"] == [120, 9]


def test_a_pass_without_labels_counts_for_the_clock_of_all_processes(tmp_path):
    """The clock of the process that had it used to fall behind, and with it the rate: weights drifted apart."""
    torchrun("tests.integrations.trainer_run", "gpt2", tmp_path / "facts.json", "unlabelled", folder=tmp_path)
    found = json.loads((tmp_path / "facts.json").read_text())
    one, other = found["of_all"]
    assert one == other
    assert one[0] == [120, 9]
    near(one[1], planned_rates(recipe_of()), 1e-12)


def test_two_processes_follow_a_rule_as_one_does_and_resume(tmp_path):
    torchrun("tests.integrations.trainer_run", "gpt2", tmp_path / "facts.json", "rule", folder=tmp_path)
    found = json.loads((tmp_path / "facts.json").read_text())
    trainer, callback = trainer_of("gpt2", tmp_path / "one", recipe=recipe_of(GROWING), data=tokens(120))
    trainer.train()
    one = facts(trainer, callback)
    batches = [entry["global_batch"] for entry in one["logs"]]
    assert batches[0] < batches[-1]
    assert [entry["global_batch"] for entry in found["logs"]] == batches
    near([entry["learning_rate"] for entry in found["logs"]], [entry["learning_rate"] for entry in one["logs"]], 1e-12)
