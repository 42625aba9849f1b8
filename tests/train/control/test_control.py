import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bigbatch import Interrupted, Recipe, fit
from bigbatch.batching.noise_scale import norm_of
from bigbatch.core.checks import RecipeError
from bigbatch.core.clock import Clock
from bigbatch.noise.simple_noise_scale import simple_noise_scale
from bigbatch.recipe.batch_rules import Scheduled
from bigbatch.tasks import Splits
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.tasks.models import mlp
from bigbatch.tasks.task import Task
from bigbatch.train.control import build
from bigbatch.train.control.build import build_scheduled_batch, check_control
from bigbatch.train.state.record import read_record

DIGITS = Recipe.named("digits/mlp").replace({"budget.epochs": 3, "batch.micro_batch": 32})
STEPS = {"kind": "step", "milestones": [1, 2], "factor": 0.25}
RULES = {
    "noise_scale": {"exchange_rate": 300.0},
    "norm_test": {"theta": 0.6},
    "inner_product_test": {"theta": 0.5, "nu": 0.6},
    "cabs": {"smallest": 16, "multiple_of": 16},
    "simigrad": {"target": 0.6},
    "divebatch": {"delta": 2.0},
    "goodput": {"alpha_s": 0.001, "beta_s_per_sample": 1e-6},
    "increase_batch": {"largest": 256},
    "adabatch": {"every_epochs": 0.5},
    "seesaw": {"largest": 256},
    "schedule": {"steps": [[1000, 64], [1500, 96], [2500, 256]]},
    "ramp": {"over_samples": 3000, "largest": 160},
    "late": {"after": 0.3, "largest": 128},
    "adascale": {"base_batch": 8},
}


def recipe_with(kind, **settings):
    rule = {"kind": kind, **RULES[kind], **settings}
    if kind in ("noise_scale", "norm_test", "inner_product_test", "cabs", "simigrad", "goodput"):
        rule["every_updates"] = 7
    changes = {"schedule.decay": STEPS} if kind == "increase_batch" else {}
    return DIGITS.replace({**changes, "batch.rule": rule})


def run(recipe, out=None, task="digits/mlp", **options):
    return fit(task, recipe, out=out, quiet=True, tensorboard=False, measure_test=False, **options)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def lines_of(folder, kind):
    return [line for line in read_record(folder / "record.jsonl") if line["kind"] == kind]


class Numbers(Task):
    """Inputs are their own numbers, and the model remembers which it saw; a data set in memory, or one behind a DataLoader."""

    name, metric = "numbers", "accuracy"

    def __init__(self, size, *, in_memory):
        self.size, self.in_memory, self.seen = size, in_memory, []

    def splits(self):
        both = TensorDataset(torch.arange(self.size, dtype=torch.float32)[:, None] / self.size, torch.zeros(self.size, dtype=torch.long))
        held = TensorDataset(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
        return Splits(both if self.in_memory else Mapped(both), held, held)

    def model(self):
        task = self

        class Remembers(nn.Linear):
            def forward(self, x):
                if self.training:
                    task.seen += (x[:, 0] * task.size).round().int().tolist()
                return super().forward(x)

        return Remembers(1, 2)

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs, targets):
        return (outputs.argmax(1) == targets).float()


class Mapped(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_sample_once_an_epoch_whatever_the_batch_does(tmp_path, in_memory):
    task = Numbers(1000, in_memory=in_memory)
    recipe = Recipe(
        num_train_samples=1000,
        optimizer={"name": "sgd", "lr": 0.1},
        batch={"global_batch": 30, "micro_batch": 20, "rule": {"kind": "adabatch", "every_epochs": 0.3, "largest": 500}},
        budget={"epochs": 2},
    )
    run(recipe, tmp_path, task)
    assert [line["after"] for line in lines_of(tmp_path, "batch")] == [60, 120, 240, 480, 500]
    first, second = task.seen[:1000], task.seen[1000:]
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != second
    plain = Numbers(1000, in_memory=True)
    run(recipe.replace({"batch.rule": None}), None, plain)
    assert task.seen == plain.seen, "the order is the same as at a fixed batch"


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("kind", RULES)
def test_a_rule_changes_what_it_should_and_resumes_bit_for_bit(tmp_path, kind):
    """Interrupted at its 43rd forward pass, wherever the rule then stands."""
    recipe = recipe_with(kind)

    class Stops(DigitsMLP):
        calls = 0

        def losses(self, outputs, targets):
            Stops.calls += outputs.requires_grad
            if Stops.calls == 43:
                os.kill(os.getpid(), signal.SIGINT)
            return super().losses(outputs, targets)

    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "cut", Stops())
    resumed = run(recipe, tmp_path / "cut", resume=True)
    assert resumed.updates == whole.updates
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name])
    for lines in ("batch", "noise", "update"):
        assert lines_of(tmp_path / "cut", lines) == lines_of(tmp_path / "whole", lines)
    if kind == "adascale":
        assert 122 < whole.updates < 486, "between equal samples and equal updates of the base batch"
    else:
        changed = [line for line in lines_of(tmp_path / "whole", "batch") if line["before"] != line["after"]]
        assert changed, "the rule never moved"
        assert all(line["reason"] for line in changed)
        sizes = {line["global_batch"] for line in lines_of(tmp_path / "whole", "update")[:-1]}
        assert sizes <= {32} | {line["after"] for line in changed}
        assert len(sizes) > 1
        if not isinstance(recipe.batch.rule, Scheduled):
            assert all(0.5 <= line["after"] / line["before"] <= 2 for line in changed)


def test_adascale_at_the_base_batch_is_the_plain_run(tmp_path):
    run(DIGITS.replace({"batch.micro_batch": 8}), tmp_path / "plain")
    run(DIGITS.replace({"batch.micro_batch": 8, "batch.rule": {"kind": "adascale", "base_batch": 32}}), tmp_path / "gained")
    updates = [lines_of(tmp_path / name, "update") for name in ("plain", "gained")]
    assert [line["lr"] for line in updates[1]] == pytest.approx([line["lr"] for line in updates[0]], rel=1e-12)
    assert [line["loss"] for line in updates[1][:-1]] == pytest.approx([line["loss"] for line in updates[0][:-1]], rel=1e-4)


def test_adascales_rate_is_the_schedule_at_its_own_time_times_the_gain(tmp_path):
    """Signal and noise of the record, put through the paper's formula by hand."""
    recipe = DIGITS.replace(
        {"batch.global_batch": 128, "schedule.warmup.kind": "none", "batch.rule": {"kind": "adascale", "base_batch": 32}}
    )
    run(recipe, tmp_path)
    told, updates = lines_of(tmp_path, "noise"), lines_of(tmp_path, "update")
    signal_mean = noise_mean = time = 0.0
    for number, (line, measured) in enumerate(zip(updates, told, strict=True), 1):
        gain = (noise_mean / 32 + signal_mean) / (noise_mean / 128 + signal_mean) if number > 1 else 1.0
        gain = min(max(gain, 1.0), 4.0) if signal_mean > 0 else 4.0 if number > 1 else 1.0
        assert line["lr"] == pytest.approx(0.1 * gain * (1 - round(time * 32) / recipe.total_samples), rel=1e-6), number
        time += gain
        new_signal, new_noise = measured["signal_and_noise"]["all"]
        weight = max(4 / 1000, 1 / number)
        signal_mean, noise_mean = signal_mean + weight * (new_signal - signal_mean), noise_mean + weight * (new_noise - noise_mean)
    assert time * 32 >= recipe.total_samples > (time - gain) * 32


def test_increasing_the_batch_keeps_rate_over_batch(tmp_path):
    """Everywhere, and the warm-up still multiplies."""
    recipe = recipe_with("increase_batch").replace({"optimizer.lr": 0.2})
    run(recipe, tmp_path)
    at = build_scheduled_batch(recipe)
    assert [at(Clock(samples=s))[0] for s in (700, 1296, 1297, 2594)] == [32, 32, 128, 256]
    for line in lines_of(tmp_path, "update")[30:-1]:
        before = (line["samples"] - line["global_batch"]) / 1297
        decayed = 0.2 * 0.25 ** sum(before >= m for m in (1, 2))
        assert line["lr"] / line["global_batch"] == pytest.approx(decayed / 32)


def test_what_is_recorded_is_what_the_gradients_say(tmp_path):
    """One update in float64: signal and noise of the record against gradients of the four pieces taken apart."""
    from bigbatch.tasks import load_task
    from bigbatch.train.data.sampler import sample_indices

    recipe = DIGITS.replace({"precision": "float64", "budget.epochs": None, "budget.updates": 1})
    run(recipe, tmp_path, measure_noise="layers")
    (line,) = lines_of(tmp_path, "noise")
    task = load_task("digits/mlp")
    torch.manual_seed(0)
    model, (x, y) = task.model().double(), task.splits().train.tensors
    index = sample_indices(0, 1297, 0, 32)
    gradients = []
    for piece in index.split(8):
        loss = nn.functional.cross_entropy(model(x[piece].double()), y[piece])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    local, whole = sum(float(g @ g) for g in gradients) / 4, sum(gradients) / 4
    signal, noise = simple_noise_scale(local_sq_norm=local, global_sq_norm=float(whole @ whole), local_batch=8, global_batch=32)
    assert line["signal_and_noise"]["all"] == pytest.approx([signal + noise / 1297, noise], rel=1e-9)
    layers = [line["signal_and_noise"][name] for name in ("1", "3")]
    assert [sum(values) for values in zip(*layers, strict=True)] == pytest.approx([signal + noise / 1297, noise], rel=1e-9)


def test_measuring_changes_nothing_but_rounding(tmp_path):
    """In float64. The last update has 19 samples: 8 + 8 + 3 in a plain run, 5 + 5 + 5 + 4 where noise is measured."""
    recipe = DIGITS.replace({"batch.micro_batch": 8, "precision": "float64"})
    run(recipe, tmp_path / "plain")
    run(recipe, tmp_path / "measured", measure_noise=True)
    for name, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "measured")[name], value, rtol=0, atol=1e-12)


@pytest.mark.bit_for_bit
def test_measuring_changes_nothing_where_updates_are_cut_alike(tmp_path):
    """Each update has 32 samples, in passes of 8 anyway: what is measured is only looked at."""
    recipe = DIGITS.replace({"batch.micro_batch": 8, "budget.epochs": None, "budget.updates": 100})
    run(recipe, tmp_path / "plain")
    run(recipe, tmp_path / "measured", measure_noise=True)
    assert len(lines_of(tmp_path / "measured", "noise")) == 100
    for name, value in weights(tmp_path / "plain").items():
        assert torch.equal(value, weights(tmp_path / "measured")[name])


class Deep(DigitsMLP):
    """Six parameters: a product with six rows is rounded in more ways than one by any processor with vectors."""

    def model(self):
        return mlp([64, 16, 16, 10])


@pytest.mark.bit_for_bit
@pytest.mark.parametrize(
    "kind", [pytest.param("cabs", marks=pytest.mark.slow), pytest.param("adascale", marks=pytest.mark.slow), "noise_scale"]
)
def test_how_often_values_are_read_changes_nothing(tmp_path, monkeypatch, kind):
    """Losses and norms are read when a quarter of a second has passed, together: after every update, or as late as can be."""
    for every_s in (0.0, 1e9):
        monkeypatch.setattr("bigbatch.train.run.POLL_S", every_s)
        run(recipe_with(kind), tmp_path / str(every_s), Deep(), save_every_s=1e9)
    for lines in ("batch", "noise", "update"):
        assert lines_of(tmp_path / "0.0", lines) == lines_of(tmp_path / "1000000000.0", lines)


GHOST = Recipe.named("fashion_mnist/resnet8")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (GHOST.replace({"batch.rule": {"kind": "norm_test"}}), r"global_batch = 128 is one normalisation group \(ghost_batch = 128\)"),
        (
            DIGITS.replace({"batch.rule": {"kind": "norm_test", "smallest": 70, "largest": 120, "multiple_of": 64}}),
            r"batches from 70 to 120 in multiples of 64: there is none; widen the bounds",
        ),
        (
            DIGITS.replace({"batch.rule": {"kind": "inner_product_test"}, "comm.kind": "fully_shard"}),
            "inner_product_test and fully_shard: needs the whole mean gradient",
        ),
        (
            DIGITS.replace({"batch.rule": {"kind": "inner_product_test"}, "comm.compression": {"kind": "top_k"}}),
            "inner_product_test and an exchange that loses something",
        ),
        (
            GHOST.replace({"batch.global_batch": 256, "batch.rule": {"kind": "norm_test", "smallest": 128}}),
            r"global_batch = 128 is one normalisation group",
        ),
    ],
)
def test_rules_that_can_not_work(recipe, message):
    with pytest.raises(RecipeError, match=message):
        run(recipe, task=recipe.task)


def test_each_worker_must_be_able_to_tell_where_it_measures_its_own_gradient():
    recipe = GHOST.replace({"batch.global_batch": 256, "comm.compression": {"kind": "top_k"}, "batch.rule": {"kind": "norm_test"}})
    check_control(recipe, measure=False, world_size=1)
    with pytest.raises(RecipeError, match="a worker's share of 256, of which it measures its own gradient, is one normalisation group"):
        check_control(recipe, measure=False, world_size=2)
    with pytest.raises(RecipeError, match="noise of layers apart, and an exchange that loses something"):
        check_control(DIGITS.replace({"comm.compression": {"kind": "top_k"}}), measure="layers", world_size=2)


def test_once_an_epoch_is_an_epoch_of_the_new_batch(tmp_path):
    run(recipe_with("divebatch", largest=64).replace({"budget.epochs": 5}), tmp_path)
    decided = [line["samples"] / 1297 for line in lines_of(tmp_path, "batch")]
    assert len(decided) >= 4
    assert all(abs(epochs - number) < 0.1 * number for number, epochs in enumerate(decided, 1))


def test_adascale_counts_epochs_or_samples_only():
    with pytest.raises(RecipeError, match="budget.updates = 100: AdaScale counts updates of its base batch"):
        DIGITS.replace({"batch.rule": {"kind": "adascale", "base_batch": 8}, "budget.epochs": None, "budget.updates": 100})


def test_what_was_measured_is_written_before_a_checkpoint_relies_on_it(tmp_path, monkeypatch):
    """At every checkpoint the record on disk has the noise of every update that it covers."""
    import bigbatch.train.run as run_module

    save, missing = run_module.save_checkpoint, []

    def checked(path, **state):
        missing.append(state["progress"].clock.updates - len(lines_of(tmp_path, "noise")))
        save(path, **state)

    monkeypatch.setattr(run_module, "save_checkpoint", checked)
    run(recipe_with("norm_test"), tmp_path, save_every_s=0)
    assert len(missing) > 10
    assert set(missing) == {0}


def test_a_run_that_was_stopped_at_its_target_ends_there(tmp_path):
    """Killed between its last checkpoint and its result."""
    first = run(DIGITS.replace({"budget.epochs": 20}), tmp_path, evaluate_every=0.25, target=0.9)
    (tmp_path / "result.json").unlink()
    again = run(DIGITS.replace({"budget.epochs": 20}), tmp_path, evaluate_every=0.25, target=0.9, resume=True)
    assert (again.updates, again.reached) == (first.updates, True)


def test_a_run_ends_at_its_target(tmp_path):
    result = run(DIGITS.replace({"budget.epochs": 20}), tmp_path, evaluate_every=0.25, target=0.9)
    assert result.reached
    assert result.validation_score >= 0.9
    evaluations = lines_of(tmp_path, "evaluation")
    assert [line["score"] >= 0.9 for line in evaluations[:-1]] == [False] * (len(evaluations) - 1)
    assert result.updates == evaluations[-1]["update"] < DIGITS.num_updates
    assert not run(DIGITS, target=1.0).reached


OPTIMIZERS = {
    "l1": {"optimizer": {"name": "adamw", "lr": 0.003}},
    "nuclear": {"optimizer": {"name": "muon", "lr": 0.02, "adam_lr": 0.005}},
}


def in_the_norm_of(norm, **changes):
    """A rule that has its say after 21 looks, and no fewer samples than before."""
    recipe = recipe_with("noise_scale", exchange_rate=2000.0)
    return recipe.replace({**OPTIMIZERS[norm], "batch.global_batch": 16, "budget.epochs": 6, **changes})


@pytest.mark.parametrize("norm", ["l1", "nuclear"])
def test_a_rule_looks_at_the_noise_in_the_norm_of_the_optimizer(norm, tmp_path):
    recipe = in_the_norm_of(norm)
    run(recipe, tmp_path)
    lines = lines_of(tmp_path, "noise")
    every = build.LOOKS[norm]
    measured = [line["update"] for line in lines if line["signal_and_noise"][norm][1] is not None]
    assert measured
    assert all(update % every == 0 and update > every for update in measured)
    decisions = lines_of(tmp_path, "batch")
    assert decisions
    assert decisions[0]["update"] > 20 * every


def test_a_run_in_the_norm_of_the_optimizer_resumes_bit_for_bit(tmp_path):
    recipe = in_the_norm_of("l1", **{"budget.epochs": 2})
    run(recipe, tmp_path / "whole")

    def stop_after(updates):
        """Ctrl-C."""

        class Stops(DigitsMLP):
            count = 0

            def losses(self, outputs, targets):
                Stops.count += 1
                if Stops.count == updates:
                    os.kill(os.getpid(), signal.SIGINT)
                return super().losses(outputs, targets)

        return Stops()

    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "stopped", task=stop_after(201))
    run(recipe, tmp_path / "stopped", resume=True)
    assert lines_of(tmp_path / "stopped", "noise") == lines_of(tmp_path / "whole", "noise")
    assert lines_of(tmp_path / "stopped", "batch") == lines_of(tmp_path / "whole", "batch")
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_which_norm_a_recipe_has_measured():
    for name, norm in (("sgd", "euclidean"), ("lars", "euclidean"), ("adam", "l1"), ("adamw", "l1"), ("lamb", "l1"), ("muon", "nuclear")):
        extra = {"adam_lr": 0.01} if name == "muon" else {}
        recipe = recipe_with("noise_scale").replace({"optimizer": {"name": name, "lr": 0.01, **extra}})
        assert norm_of(recipe) == norm
        assert norm_of(recipe, has_mean=False) == "euclidean"
        assert norm_of(recipe.replace({"batch.rule.norm": "euclidean"})) == "euclidean"
    assert norm_of(recipe_with("cabs").replace(OPTIMIZERS["l1"])) == "euclidean"
    for changes, said in (
        ({"batch.rule.norm": "nuclear"}, "norm = 'nuclear' and the optimizer sgd: only muon steps in it"),
        ({"batch.rule.norm": "l1", "comm": {"kind": "fully_shard"}}, "norm = 'l1', and workers that don't get the whole mean gradient"),
        ({**OPTIMIZERS["l1"], "batch.ghost_batch": 16, "batch.global_batch": 32}, "fewer than three normalisation groups"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_control(recipe_with("noise_scale").replace(changes), measure=False)
    with pytest.raises(RecipeError, match="measure_noise, and a rule that needs the noise in l1"):
        check_control(in_the_norm_of("l1"), measure=True)
