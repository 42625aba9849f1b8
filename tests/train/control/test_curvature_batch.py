"""ABSA in the trainer, on one worker; two are in tests/distributed/test_absa.py."""

import itertools
import json
import math

import pytest
import torch
from tests.reference.absa import absa as literal_absa
from tests.train.adversarial.test_training import NotInMemory, Stopped, Tokens, assert_same, run, weights
from torch import nn
from torch.func import functional_call

from bigbatch import Diverged, Interrupted, Recipe
from bigbatch.comm.protocol import Comm
from bigbatch.core.checks import NotFinite, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.tasks import Splits
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.adversarial.training import build_update_batches
from bigbatch.train.control.build import build_absa
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.data.shares import work_of
from bigbatch.train.measure.curvature_probe import CurvatureProbe
from bigbatch.train.state.record import read_record
from bigbatch.train.update.running_statistics import RunningStatistics

PERIOD, N = 100, 1297


class Small(DigitsMLP):
    """Few enough parameters for a Hessian written out, and a batch norm."""

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 10))


SMALL = Recipe.named("digits/mlp").replace(
    {
        "precision": "float64",
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        "schedule": {},
        "batch": {
            "global_batch": 20,
            "ghost_batch": "global",
            "rule": {
                "kind": "absa",
                "every_epochs": PERIOD / N,
                "patience_epochs": 3 * PERIOD / N,
                "largest": 80,
                "samples": 60,
                "tolerance": 1e-9,
                "eps": 0.05,
            },
        },
        "budget": {"samples": 12 * PERIOD},
    }
)


def lines_of(out, kind):
    return [line for line in read_record(out / "record.jsonl") if line["kind"] == kind]


def written_out(model, task, inputs, targets):
    """The largest eigenvalue of the Hessian as a matrix."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat):
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        state = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return task.losses(functional_call(model, state, (inputs,)), targets).mean()

    model.eval()
    matrix = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in model.parameters()]))
    model.train()
    return float(torch.linalg.eigvalsh(matrix)[-1])


def test_equals_a_loop_of_ones_own(tmp_path):
    """Hessian as a matrix, the paper's pseudo-code, FGSM on the first samples in evaluation mode, batch norm of torch."""
    run(SMALL, tmp_path, Small())
    task = Small()
    inputs, targets = task.splits().train.tensors
    inputs, (low, high) = inputs.double(), (inputs.min().double(), inputs.max().double())
    torch.manual_seed(0)
    model = task.model().double()
    updates = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    samples, seen, batch, lr, share = 0, [], 20, 0.02, 0.2
    while samples < 12 * PERIOD:
        if samples // PERIOD > len(seen) and batch < 80:
            index = sample_indices(0, N, 0, 60)
            seen.append(written_out(model, task, inputs[index], targets[index]))
            settings = {"batch": 20, "lr": 0.02, "max_ratio": 4, "period": 3}
            batch, lr, share, _ = literal_absa(seen, epochs=math.inf, **settings)[-1]
        size = min(batch, 12 * PERIOD - samples)
        index = sample_indices(0, N, samples, size)
        x, y = inputs[index].clone(), targets[index]
        if samples < 6 * PERIOD and (first := int(share * size)):
            model.eval()
            towards = x[:first].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(task.losses(model(towards), y[:first]).sum(), towards)
            model.train()
            x[:first] = (x[:first] + 0.05 * (high - low) * gradient.sign()).clamp(low, high)
        updates.param_groups[0]["lr"] = lr
        task.losses(model(x), y).mean().backward()
        updates.step()
        updates.zero_grad()
        samples += size
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=1e-8)
    looks, decisions = lines_of(tmp_path, "curvature"), lines_of(tmp_path, "batch")
    assert [line["eigenvalues"][0] for line in looks] == pytest.approx(seen, rel=1e-6)
    assert all(line["residuals"][0] <= 1e-9 for line in looks)
    assert [line["global_batch"] for line in looks] == [line["after"] for line in decisions]
    assert {line["after"] for line in decisions} == {20, 40, 80}
    assert [line["adversarial_share"] for line in looks] == [
        0.0 if line["global_batch"] == 80 else 4 / line["global_batch"] for line in looks
    ]


def test_a_look_costs_what_is_said_and_ends_at_the_largest_batch(tmp_path):
    result = run(SMALL, tmp_path, Small())
    looks = lines_of(tmp_path, "curvature")
    assert result.curvature_s == pytest.approx(sum(line["seconds"] for line in looks), abs=1e-3)
    assert looks[-1]["global_batch"] == 80
    assert looks[-1]["samples"] < 11 * PERIOD


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("stop", [6, 11, 17, 22])
def test_resumes_bit_for_bit(tmp_path, monkeypatch, stop):
    recipe = SMALL.replace({"precision": "bfloat16", "batch.rule.tolerance": 0.05})
    run(recipe, tmp_path / "whole", Small())
    with monkeypatch.context() as patch:
        Stopped(patch, stop)
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "cut", Small())
    run(recipe, tmp_path / "cut", Small(), resume=True)
    assert_same(tmp_path / "cut", tmp_path / "whole")
    for kind in ("batch", "update"):
        assert lines_of(tmp_path / "cut", kind) == lines_of(tmp_path / "whole", kind)
    first, second = ([{**line, "seconds": 0} for line in lines_of(tmp_path / name, "curvature")] for name in ("cut", "whole"))
    assert first == second


@pytest.mark.parametrize("lr", ["none", "linear", "sqrt"])
def test_the_rate_goes_with_the_batch(tmp_path, lr):
    run(SMALL.replace({"batch.rule.lr": lr}), tmp_path, Small())
    power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[lr]
    updates = lines_of(tmp_path, "update")[:-1]
    assert {line["global_batch"] for line in updates} == {20, 40, 80}
    for line in updates:
        assert line["lr"] == pytest.approx(0.02 * (line["global_batch"] / 20) ** power, rel=1e-12)


def test_an_eigenvalue_that_is_not_finite_decides_nothing_and_time_goes_on(tmp_path, monkeypatch):
    def measure(self):
        raise NotFinite("loss of batch 0 is inf")

    monkeypatch.setattr(CurvatureProbe, "measure", measure)
    run(SMALL, tmp_path, Small())
    decisions = lines_of(tmp_path, "batch")
    assert [line["after"] for line in decisions] == [20, 20, 40, 40, 40, 80]
    assert decisions[2]["reason"] == "top eigenvalue nan, the first: 3 periods without an increase"
    assert lines_of(tmp_path, "curvature") == []
    for line in decisions:
        json.dumps(line, allow_nan=False)


def test_divergence_is_noticed_before_a_look(tmp_path):
    with pytest.raises(Diverged):
        run(SMALL.replace({"optimizer.lr": 1e308}), tmp_path, Small())


def passes_of(recipe, statistics=None):
    task = Small()
    torch.manual_seed(0)
    comm = Comm(task.model().double())
    passes = build_update_batches(task, recipe, comm, task.splits().train, pair=None)
    passes.follow(lambda clock: 0.2 if clock.updates < 3 else 0.0, RunningStatistics(comm.model, comm.ranks))
    return comm.model, passes


def test_only_the_first_samples_are_replaced_whatever_the_passes(tmp_path):
    task, made = Small(), []
    inputs, targets = task.splits().train.tensors
    inputs = inputs.double()
    for micro_batch in (20, 3):
        model, passes = passes_of(SMALL)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        work = work_of(20, 0, 1, micro_batch=micro_batch, ghost_batch=None)
        starts = itertools.accumulate(work.sizes, initial=0)
        stream = ((inputs[start : start + size], targets[start : start + size]) for start, size in zip(starts, work.sizes, strict=False))
        pieces = list(passes.of_update(stream, Clock(), 20, work))
        made.append(torch.cat([piece[0] for piece in pieces]))
        assert torch.equal(torch.cat([piece[1] for piece in pieces]), targets[:20])
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
    changed = (made[0] != inputs[:20]).flatten(1).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 16
    step = 0.05 * (inputs.max() - inputs.min())
    assert (made[0] - inputs[:20]).abs().max() == pytest.approx(float(step))
    assert inputs.min() <= made[0].min() <= made[0].max() <= inputs.max()
    assert torch.equal(made[0], made[1])


def test_no_share_costs_nothing(monkeypatch, tmp_path):
    passes, original = [], nn.functional.cross_entropy
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda *args, **rest: passes.append(1) or original(*args, **rest))
    monkeypatch.setattr(CurvatureProbe, "measure", lambda self: (_ for _ in ()).throw(NotFinite("not looked at here")))
    recipe = SMALL.replace({"batch.rule.patience_epochs": 10.0, "budget.samples": 200})
    run(recipe, tmp_path / "with", Small(), evaluate_every=100.0)
    assert len(passes) == 10 + 5 + 1  # of updates, of examples in the first half, of the evaluation
    passes.clear()
    run(recipe.replace({"batch.rule.share": 0.0}), tmp_path / "without", Small(), evaluate_every=100.0)
    assert len(passes) == 10 + 1


def test_the_share_halves_on_the_way(tmp_path):
    rule = build_absa(SMALL)
    for eigenvalue in (4.0, 2.0):
        rule.measured(eigenvalue)
    assert (rule.global_batch, rule.share(0.1), rule.share(0.5)) == (40, 0.1, 0.0)


def test_defaults_are_the_papers():
    recipe = Recipe.named("fashion_mnist/resnet8").replace({"batch.rule": {"kind": "absa"}})
    rule = build_absa(recipe)
    batches = [rule.global_batch]
    for _ in range(70):
        rule.measured(1.0)
        batches.append(rule.global_batch)
    assert batches == [128 * 2 ** (epoch // 10) for epoch in range(71)]
    assert rule.share(0.0) == 0.0
    section = recipe.batch.rule
    assert (section.share, section.off_at, section.eps, section.lr, section.samples) == (0.2, 0.5, 0.005, "linear", 512)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


class FromDisk(Small):
    """A training set that is not in memory."""

    def splits(self):
        train, *rest = super().splits()
        return Splits(NotInMemory(train), *rest)


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, Tokens, r"\[batch.rule\] with inputs of torch.int64: have no direction to step in"),
        ({}, FromDisk, "batch.rule.low and high: are not given, and the training set is not in memory"),
        ({"batch.rule.eps": 1.5}, Small, r"batch.rule: eps = .*: must be above zero and at most the data's range"),
        ({"precision": "float32"}, Small, "batch.rule.tolerance = 1e-09: is below the rounding of float32; give 1e-05 or more"),
        ({"batch.rule.largest": 10}, Small, "batch.rule.largest = 10: must be at least global_batch = 20"),
    ],
)
def test_what_can_not_work_is_refused_before_the_run(tmp_path, changes, task, message):
    with pytest.raises(RecipeError, match=message):
        run(SMALL.replace(changes), None, task())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch.rule.patience_epochs": 0.01}, "patience_epochs = 0.01: is over before the first look, after every_epochs = 0.0771"),
        ({"batch.rule.low": 1.0}, "low = 1.0, high = None: must be given together"),
        ({"batch.rule.share": 1.2}, "batch.rule.share = 1.2: .* less than or equal to 1"),
        ({"batch.rule.factor": 1.0}, "batch.rule.factor = 1.0: .* greater than 1"),
        ({"comm.kind": "local_sgd"}, 'batch.rule.kind = "absa" with comm.kind = "local_sgd": the curvature is that of one set of weights'),
        ({"adversarial": {"eps": 0.1}}, r'batch.rule.kind = "absa" with \[adversarial\]'),
    ],
)
def test_impossible_recipes(changes, message):
    with pytest.raises(RecipeError, match=message):
        SMALL.replace(changes)


def test_a_range_that_is_given_serves_any_data_set(tmp_path):
    images = Small().splits().train.tensors[0]
    bounds = {"batch.rule.low": float(images.min()), "batch.rule.high": float(images.max())}
    single = {"precision": "float32", "batch.rule.tolerance": 0.05, "budget.samples": 200}
    run(SMALL.replace({**bounds, **single}), tmp_path / "loader", FromDisk())
    run(SMALL.replace(single), tmp_path / "memory", Small())
    assert_same(tmp_path / "loader", tmp_path / "memory")
