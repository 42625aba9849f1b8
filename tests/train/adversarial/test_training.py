"""Concurrent adversarial learning in the trainer, on one worker; several are in tests/distributed/test_adversarial.py."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bigbatch import Diverged, Interrupted, Recipe, fit
from bigbatch.adversarial import Attack, ConAdv, share_at
from bigbatch.adversarial.concurrent import made_here
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import Elsewhere as AnErrorElsewhere
from bigbatch.core.checks import RecipeError
from bigbatch.tasks import Splits, load_task
from bigbatch.tasks.classification import Classification
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.adversarial.training import paired
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.setup.build import build_optimizer
from bigbatch.train.state.agreed_flags import AgreedFlags, Flags
from bigbatch.train.state.record import read_record

DIGITS = Recipe.named("digits/mlp").replace(
    {
        "precision": "float64",
        "batch.global_batch": 100,
        "batch.micro_batch": 100,
        "budget.epochs": None,
        "budget.samples": 20 * 100 + 30,
        "schedule.warmup.kind": "none",
        "schedule.decay.kind": "constant",
        "optimizer.nesterov": False,
        "adversarial": {"eps": 0.1},
    }
)
RESNET = Recipe.named("fashion_mnist/resnet8").replace(
    {
        "precision": "float64",
        "batch.global_batch": 64,
        "batch.ghost_batch": 16,
        "batch.micro_batch": 64,
        "budget.epochs": None,
        "budget.samples": 5 * 64 + 40,
        "model.width": 4,
        "adversarial": {"eps": 0.1},
    }
)


def run(recipe, out=None, task="digits/mlp", **options):
    return fit(task, recipe, out=out, **{"quiet": True, "tensorboard": False, "measure_test": False, **options})


def weights(out):
    return torch.load(out / "last.pt", weights_only=True)["model"]


def assert_same(out, other, atol=0.0):
    expected = weights(other)
    for key, value in weights(out).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=atol, msg=key)


@pytest.mark.parametrize(("optimizer", "clean", "adversarial"), [("sgd", 0.5, 0.5), ("lars", 1.0, 1.0)])
@pytest.mark.parametrize("tau", [0, 1, 2])
def test_equals_a_loop_of_ones_own(tmp_path, tau, optimizer, clean, adversarial):
    """The paper's sum with LARS, the mean with SGD; eps a part of the range."""
    recipe = DIGITS.replace({"adversarial.tau": tau, "optimizer.name": optimizer, "optimizer.momentum": 0.9})
    run(recipe, tmp_path / "run")
    task = load_task("digits/mlp")
    inputs, targets = task.splits().train.tensors
    inputs = inputs.double()
    torch.manual_seed(0)
    model = task.model().double()
    low, high = inputs.min(), inputs.max()  # float64
    conadv = ConAdv(made_here(Attack(model, task.losses)), eps=0.1 * (high - low), low=low, high=high, tau=tau)
    updates = build_optimizer(model, recipe)
    starts = range(0, recipe.total_samples, 100)
    indices = [sample_indices(0, recipe.num_train_samples, start, min(100, recipe.total_samples - start)) for start in starts]
    for twins in conadv.over((inputs[index], targets[index]) for index in indices):
        loss = clean * task.losses(model(twins.inputs), twins.targets).mean()
        (loss + adversarial * task.losses(model(twins.adversarial), twins.targets).mean()).backward()
        updates.step()
        updates.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tau", [0, 1])
def test_the_same_update_in_any_number_of_passes(tmp_path, tau):
    recipe = RESNET.replace({"adversarial.tau": tau})
    run(recipe, tmp_path / "one", "fashion_mnist/resnet8")
    run(recipe.replace({"batch.micro_batch": 16}), tmp_path / "several", "fashion_mnist/resnet8")
    assert_same(tmp_path / "several", tmp_path / "one", atol=1e-10)


def test_streams_have_statistics_of_their_own_and_one_is_evaluated(tmp_path):
    result = run(RESNET, tmp_path / "run", "fashion_mnist/resnet8")
    state = weights(tmp_path / "run")
    means = {name for name in state if name.endswith("running_mean") and "auxiliary" not in name}
    assert means
    for name in means:
        auxiliary = name.replace("running_mean", "auxiliary.running_mean")
        assert not torch.equal(state[name], state[auxiliary])
        tracked = name.replace("running_mean", "num_batches_tracked"), auxiliary.replace("running_mean", "num_batches_tracked")
        assert state[tracked[0]] == state[tracked[1]] == 5 * 4 + 3  # groups of training passes; making examples leaves no trace
    assert result.updates == 6


class Stopped:
    """Asked to stop after so many updates."""

    def __init__(self, monkeypatch, updates):
        counts = itertools.count(1)
        monkeypatch.setattr(AgreedFlags, "poll", lambda self, *, interrupted, save: Flags(True, False) if next(counts) == updates else None)


@pytest.mark.slow
@pytest.mark.bit_for_bit
@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial.tau": 0},
        {"adversarial.tau": 1},
        {"adversarial.tau": 3, "batch.micro_batch": 16},
        {"adversarial.tau": 2, "adversarial.full_until": 0.2, "adversarial.off_at": 0.7},
        {"augmentation": {"padding": 2, "flip": True}},
    ],
    ids=["DisAdv", "1", "3, in pieces", "annealed", "augmented"],
)
def test_resumes_bit_for_bit(tmp_path, monkeypatch, changes):
    recipe = RESNET.replace({"precision": "bfloat16", **changes})
    run(recipe, tmp_path / "whole", "fashion_mnist/resnet8")
    for stop in (2, 4):
        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            Stopped(patch, stop)
            with pytest.raises(Interrupted):
                run(recipe, out, "fashion_mnist/resnet8")
        held = torch.load(out / "last.pt", weights_only=True)["workers"][0]["held"]
        assert len(held["ahead"]) == (0 if "adversarial.off_at" in changes and stop == 4 else min(recipe.adversarial.tau, 6 - stop))
        run(recipe, out, "fashion_mnist/resnet8", resume=True)
        assert_same(out, tmp_path / "whole")


class Odd(Classification):
    """Samples of seven numbers: 28 bytes, which pieces of a larger tensor seldom begin at a cache line with."""

    name = "odd"

    def __init__(self):
        self.places = []  # bytes behind a cache line at which the inputs of training passes begin

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.rand(200, 7, generator=chance), torch.randint(3, (200,), generator=chance))
        return Splits(data, data, data)

    def model(self):
        model = nn.Linear(7, 3)
        model.register_forward_pre_hook(lambda module, inputs: self.places.append(inputs[0].data_ptr() % 64))
        return model


@pytest.mark.bit_for_bit
def test_what_is_held_is_multiplied_at_the_same_places_after_a_resume(tmp_path, monkeypatch):
    """Where a matrix begins in memory decides how MKL rounds: pieces of what a checkpoint held must begin where new ones do."""
    recipe = Recipe(
        num_train_samples=200,
        optimizer={"name": "sgd", "lr": 0.1},
        batch={"global_batch": 25, "micro_batch": 5},
        budget={"updates": 8},
        adversarial={"eps": 0.1, "tau": 3},
    )
    run(recipe, tmp_path / "whole", Odd())
    Stopped(monkeypatch, 4)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "cut", Odd())
    run(recipe, tmp_path / "cut", resumed := Odd(), resume=True)
    assert set(resumed.places) == {0}
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_once_the_share_is_zero_an_update_costs_nothing_more(tmp_path, monkeypatch):
    passes, original = [], nn.functional.cross_entropy
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda *args, **rest: passes.append(1) or original(*args, **rest))
    recipe = DIGITS.replace({"budget.samples": 1000, "adversarial.full_until": 0.5, "adversarial.off_at": 0.5})
    run(recipe, tmp_path / "run", evaluate_every=100.0)
    shares = [share_at(u / 10, full_until=0.5, off_at=0.5) for u in range(10)]
    assert shares == [1.0] * 6 + [0.0] * 4
    assert len(passes) == 10 + 2 * 6 + 1  # clean; adversarial and its making; evaluation
    run(DIGITS.replace({"budget.samples": 1000}), tmp_path / "on")
    assert not torch.equal(weights(tmp_path / "run")["1.weight"], weights(tmp_path / "on")["1.weight"])


@pytest.mark.bit_for_bit
def test_a_plain_run_is_not_touched(tmp_path):
    """Whatever is not asked for changes nothing: the loss that is recorded is the clean one."""
    run(DIGITS.replace({"adversarial": None}), tmp_path / "plain")
    run(DIGITS, tmp_path / "adversarial")
    first, second = (read_record(tmp_path / name / "record.jsonl") for name in ("plain", "adversarial"))
    losses = [[line["loss"] for line in lines if line["kind"] == "update"] for lines in (first, second)]
    assert losses[0][0] == losses[1][0]  # before any step
    assert losses[0][5:] != losses[1][5:]
    assert torch.load(tmp_path / "plain" / "last.pt", weights_only=True)["workers"][0]["held"] == {}


def test_divergence_is_noticed(tmp_path):
    with pytest.raises(Diverged):
        run(DIGITS.replace({"optimizer.lr": 1e200}), tmp_path / "run")


def test_one_device_says_that_it_saves_nothing(capsys):
    run(DIGITS.replace({"budget.samples": 100}), quiet=False)
    assert "tau = 1 saves no time" in capsys.readouterr().err
    run(DIGITS.replace({"budget.samples": 100, "adversarial.tau": 0}), quiet=False)
    assert "saves no time" not in capsys.readouterr().err


class Tokens(DigitsMLP):
    """Inputs that are whole numbers."""

    def splits(self):
        return Splits(*(TensorDataset(d.tensors[0].long(), d.tensors[1]) for d in super().splits()))


class NotInMemory(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class FromDisk(DigitsMLP):
    """A training set that is not in memory."""

    def splits(self):
        train, *rest = super().splits()
        return Splits(NotInMemory(train), *rest)


def test_what_can_not_be_perturbed_is_refused():
    with pytest.raises(RecipeError, match=r"\[adversarial\] with inputs of torch.int64: have no direction to step in"):
        run(DIGITS, task=Tokens())
    with pytest.raises(RecipeError, match="adversarial.low and high: are not given, and the training set is not in memory"):
        run(DIGITS, task=FromDisk())
    with pytest.raises(RecipeError, match="adversarial: a second stream on cpu: only a GPU has streams"):
        run(DIGITS.replace({"adversarial.makers": "stream"}), device="cpu")
    with pytest.raises(RecipeError, match=r"measure_noise with \[adversarial\]"):
        run(DIGITS, measure_noise=True)


def test_every_trainer_needs_a_maker():
    recipe = DIGITS.replace({"adversarial.makers": "ranks"})
    with (
        pytest.raises(RecipeError, match='adversarial.makers = "ranks" with 3 workers: .*; start 2 or 4 workers'),
        paired(recipe, Ranks(0, 3)),
    ):
        pass
    with pytest.raises(AnErrorElsewhere, match="with 3 workers"), paired(recipe, Ranks(2, 3)):  # said once
        pass
    with paired(recipe, Ranks()) as (ranks, pair):  # alone
        assert (ranks, pair) == (Ranks(), None)


def test_a_range_that_is_given_serves_any_data_set(tmp_path):
    images = load_task("digits/mlp").splits().train.tensors[0]
    bounds = {"adversarial.low": float(images.min()), "adversarial.high": float(images.max()), "precision": "float32"}
    run(DIGITS.replace({**bounds, "budget.samples": 300}), tmp_path / "loader", FromDisk())
    run(DIGITS.replace({"precision": "float32", "budget.samples": 300}), tmp_path / "memory")
    assert_same(tmp_path / "loader", tmp_path / "memory")
