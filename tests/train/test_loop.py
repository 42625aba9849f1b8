"""The whole loop on real data: what it records, where it stops, and what it refuses."""

import itertools
import json
import math
import os
import shutil
import signal

import pytest
import torch
from tests.distributed.train import stopped_after
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bigbatch import Diverged, Interrupted, Recipe, fit
from bigbatch.core.checks import DataError, OutputError, RecipeError, UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import schedule_of
from bigbatch.tasks import Splits, load_task
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.state.record import read_record

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 2, "batch.micro_batch": 32})


def run(task="digits/mlp", recipe=RECIPE, **kwargs):
    return fit(task, recipe, **{"quiet": True, "tensorboard": False, **kwargs})


def test_equals_a_hand_written_loop(tmp_path):
    """Same order, same rates, same optimizer: the same weights, to rounding."""
    recipe = RECIPE.replace({"batch.global_batch": 50, "batch.micro_batch": 50, "optimizer.weight_decay": 0.01})
    run(recipe=recipe, out=tmp_path / "run")
    inputs, targets = load_task("digits/mlp").splits().train.tensors
    torch.manual_seed(0)
    model = load_task("digits/mlp").model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    done, total, schedule = 0, recipe.total_samples, schedule_of(recipe)
    while done < total:
        index = sample_indices(0, 1297, done, min(50, total - done))
        optimizer.param_groups[0]["lr"] = 0.1 * schedule(Clock(samples=done))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[index]), targets[index]).backward()
        optimizer.step()
        done += len(index)
    got = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-5), name


def test_records_every_update_and_evaluation(tmp_path):
    result = run(out=tmp_path / "run", tensorboard=True)
    lines = read_record(tmp_path / "run" / "record.jsonl")
    updates = [line for line in lines if line["kind"] == "update"]
    assert [u["update"] for u in updates] == list(range(1, result.updates + 1))
    assert updates[-1]["samples"] == result.samples == 2594
    assert updates[-1]["global_batch"] == 2594 % 32
    schedule = schedule_of(RECIPE)
    assert [u["lr"] for u in updates] == pytest.approx([0.1 * schedule(Clock(samples=u["samples"] - u["global_batch"])) for u in updates])
    evaluations = [(line["split"], line["num_samples"]) for line in lines if line["kind"] == "evaluation"]
    assert evaluations == [("validation", 200), ("validation", 200), ("test", 300)]
    assert lines[0]["kind"] == "start"
    assert Recipe.from_dict(lines[0]["recipe"]) == RECIPE
    assert lines[-1]["kind"] == "end"
    assert lines[-1]["test_score"] == result.test_score
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_score"] == result.test_score


@pytest.mark.bit_for_bit
def test_the_same_seed_gives_the_same_run_and_another_another():
    assert run().test_loss == run().test_loss
    assert run().test_loss != run(recipe=RECIPE.replace({"seed": 1})).test_loss


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run()
    assert list(tmp_path.iterdir()) == []


def test_settings_are_chosen_without_the_test_set():
    result = run(measure_test=False)
    assert math.isnan(result.test_score)
    assert result.validation_score > 0.5


def test_clipping_bounds_the_update():
    still = run(recipe=RECIPE.replace({"optimizer.clip_norm": 1e-9}))
    assert still.validation_score < 0.3
    assert run(recipe=RECIPE.replace({"optimizer.clip_norm": 1e9})).test_loss == run().test_loss


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_other_optimizers(name):
    recipe = RECIPE.replace({"optimizer.name": name, "optimizer.lr": 3e-3, "optimizer.decay_norms_and_biases": False})
    assert run(recipe=recipe).test_score > 0.9


def test_bfloat16_autocast():
    assert run(recipe=RECIPE.replace({"precision": "bfloat16"})).test_score > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU: apt-get install g++")
def test_compiled_it_learns_the_same():
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 2.0, "batch.micro_batch": 32})
    plain, compiled = (fit("digits/mlp", recipe, quiet=True, compile=c) for c in (False, True))
    assert compiled.test_loss == pytest.approx(plain.test_loss, rel=1e-3)


def test_divergence_is_a_named_error_and_keeps_record_and_checkpoint(tmp_path):
    recipe = RECIPE.replace({"optimizer.lr": 1e9})
    with pytest.raises(Diverged, match=r"loss = (nan|inf) at update \d+ .*: must be finite; lower the rate, .*checkpoint are in") as caught:
        run(recipe=recipe, out=tmp_path / "run")
    lines = read_record(tmp_path / "run" / "record.jsonl")
    assert lines[-1]["kind"] == "diverged"
    assert lines[-1]["update"] == caught.value.update
    assert [line["update"] for line in lines[1:]] == list(range(1, caught.value.update + 1))
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in state.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The last update of the run breaks the weights; no later loss would tell."""
    recipe = RECIPE.replace({"budget.epochs": None, "budget.updates": 1, "schedule.warmup.kind": "none", "optimizer.lr": 1e38})
    recipe = recipe.replace({"optimizer.weight_decay": 1e38})
    with pytest.raises(Diverged):
        run(recipe=recipe, out=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in state.values())


class _Spoilt(DigitsMLP):
    def splits(self):
        train, validation, test = super().splits()
        inputs = train.tensors[0].clone()
        inputs[[17, 40]] = math.nan
        return Splits(TensorDataset(inputs, train.tensors[1]), validation, test)


def test_nan_in_the_data():
    with pytest.raises(DataError, match="train inputs: 2 of 1,297 samples hold NaN or infinity, the first is sample 17; clean or drop"):
        run(task=_Spoilt())


class _MapStyle(Dataset):
    def __init__(self, tensors, spoil=None):
        self.tensors, self.spoil = tensors, spoil

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        x = self.tensors[0][i]
        return (x * math.nan if i == self.spoil else x), self.tensors[1][i]


class _MapStyleDigits(DigitsMLP):
    spoil = None

    def splits(self):
        train, validation, test = (split.tensors for split in super().splits())
        return Splits(_MapStyle(train, self.spoil), _MapStyle(validation), _MapStyle(test))


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_a_map_style_data_set_gives_the_same_run_through_worker_processes():
    assert run(task=_MapStyleDigits()).test_loss == run().test_loss


def test_nan_in_a_map_style_data_set_is_named_after_the_divergence():
    task = _MapStyleDigits()
    task.spoil = 17
    with pytest.raises(Diverged, match="the inputs themselves hold NaN or infinity, first in training sample 17: clean or drop it"):
        run(task=task)


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "adascale", "base_batch": 16},  # sees more samples than the recipe's budget
        {"kind": "schedule", "steps": [[100, 96], [400, 160]]},
    ],
    ids=lambda rule: rule["kind"],
)
def test_after_a_change_of_the_batch_too(rule):
    """The samples of the update used to be reckoned from the recipe's batch: others were blamed, or it never ended."""
    task, recipe = _MapStyleDigits(), RECIPE.replace({"batch.rule": rule, "optimizer.lr": 0.01})
    task.spoil = int(sample_indices(0, 1297, 1200, 1)) if rule["kind"] == "schedule" else None
    if task.spoil is None:
        task.losses = _becomes_nan(task.losses, after=120)
        with pytest.raises(Diverged, match="lower the rate"):
            run(task=task, recipe=recipe)
        return
    with pytest.raises(Diverged, match=f"first in training sample {task.spoil}: clean or drop it"):
        run(task=task, recipe=recipe)


def _becomes_nan(losses, after):
    calls = itertools.count()
    return lambda outputs, targets: losses(outputs, targets) * (math.nan if next(calls) >= after else 1)


class _WithDropout(_MapStyleDigits):
    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


def test_a_loader_s_processes_draw_no_random_number_that_a_resumed_run_would_draw_again(tmp_path):
    """A new DataLoader took a seed from torch's generator, and the dropout of a resumed run was another."""
    task, recipe = _WithDropout(), RECIPE.replace({"budget.epochs": 0.2})
    whole = run(task=task, recipe=recipe, out=tmp_path / "whole")
    with stopped_after(4):
        run(task=task, recipe=recipe, out=tmp_path / "run", save_every_s=0.0)
    resumed = run(task=task, recipe=recipe, out=tmp_path / "run", resume=True)
    assert (resumed.test_loss, resumed.validation_score) == (whole.test_loss, whole.validation_score)


def test_a_loss_that_is_not_finite_at_the_first_weights_is_not_blamed_on_the_rate():
    task = load_task("digits/mlp")
    task.losses = _becomes_nan(task.losses, after=0)
    with pytest.raises(Diverged, match="these are the initial weights, so it is not the rate: look at the data, the losses"):
        run(task=task)


class _Ragged(DigitsMLP):
    def splits(self):
        ragged = [(torch.ones(5 + i % 3), 0) for i in range(1297)]
        return Splits(ragged, ragged[:200], ragged[:300])


class _Frozen(DigitsMLP):
    def model(self):
        return super().model().requires_grad_(False)


class _Two(DigitsMLP):
    def splits(self):
        return tuple(super().splits())[:2]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (_Ragged, r"samples have unlike shapes \(\[\d\] at entry 0 and \[\d\] at entry \d\); give the task a collate\(samples\)"),
        (_Frozen, "the model has no parameter with requires_grad = True: there is nothing to train"),
        (_Two, r"splits\(\) gave tuple; give Splits\(train, validation, test\)"),
    ],
)
def test_a_first_task_of_ones_own_is_told_in_a_line_what_it_lacks(task, message):
    with pytest.raises(UserError, match=message):
        run(task=task())


def test_batch_norm_needs_a_stated_group():
    recipe = Recipe.named("fashion_mnist/resnet8").replace({"batch.ghost_batch": None})
    with pytest.raises(RecipeError, match=r"the model normalises over the batch \(1, 3.bn1, 3.bn2, ...\) .*set batch.ghost_batch"):
        run(task="fashion_mnist/resnet8", recipe=recipe)


def test_an_unknown_model_option():
    with pytest.raises(RecipeError, match="task digits/mlp: unknown model option 'hiden': did you mean 'hidden'"):
        run(recipe=RECIPE.replace({"model.hiden": 3}))


def test_a_recipe_for_another_size():
    with pytest.raises(RecipeError, match="num_train_samples = 999: the task's training set has 1,297; set num_train_samples=1297"):
        run(recipe=RECIPE.replace({"num_train_samples": 999}))


def test_an_output_folder_that_is_not_writable():
    with pytest.raises(OutputError, match="output folder /proc/run: .*choose a folder that you can write with --out"):
        run(out="/proc/run")


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_run_goes_on_to_the_same_end(tmp_path, number):
    class Stops(DigitsMLP):
        calls = 0

        def losses(self, outputs, targets):
            Stops.calls += outputs.requires_grad
            if Stops.calls == 20:
                os.kill(os.getpid(), number)
            return super().losses(outputs, targets)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped after update 20 and saved; continue with the same command and --resume"):
        run(task=Stops(), out=tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"][0][1] == 20
    assert run(out=tmp_path / "run", resume=True).test_loss == run().test_loss
    updates = [line["update"] for line in read_record(tmp_path / "run" / "record.jsonl") if line["kind"] == "update"]
    assert updates == list(range(1, 83))
    assert signal.getsignal(number) == before


def test_an_interrupt_without_a_folder_says_that_nothing_was_saved():
    class Stops(DigitsMLP):
        def losses(self, outputs, targets):
            os.kill(os.getpid(), signal.SIGINT)
            return super().losses(outputs, targets)

    with pytest.raises(Interrupted, match="stopped after update 1; nothing was saved: no --out was given"):
        run(task=Stops())


def test_evaluation_counts_every_sample_once():
    from bigbatch.train.measure.evaluate import evaluate

    task = load_task("digits/mlp")
    torch.manual_seed(0)
    model = task.model().double()
    test = task.splits().test
    got = evaluate(model, task, test, recipe=Recipe.named("digits/mlp").replace({"precision": "float64"}))
    outputs = model(test.tensors[0].double())
    assert got.num_samples == 300
    assert got.score == pytest.approx((outputs.argmax(1) == test.tensors[1]).double().mean().item(), rel=1e-12)
    assert got.loss == pytest.approx(nn.functional.cross_entropy(outputs, test.tensors[1]).item(), rel=1e-12)
    assert model.training


def test_plain_lines_where_there_is_no_terminal(capfd):
    run(quiet=False)
    err = capfd.readouterr().err
    assert "digits/mlp  epoch 2.0/2  loss" in err
    assert "0 s left" in err
    run(quiet=True)
    assert capfd.readouterr().err == ""
