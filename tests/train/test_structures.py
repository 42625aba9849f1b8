"""Batches of any structure and samples that count by their tokens: the same weights as plain PyTorch, however an update is cut."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.distributed.ranks import run_ranks
from tests.distributed.train import stopped_after
from tests.structured_tasks import (
    RECIPE,
    Dicts,
    InMemory,
    InMemoryPair,
    MeanOfMeans,
    Nested,
    OfAnotherKeyword,
    Plain,
    Tuples,
    Words,
)

from bigbatch import fit
from bigbatch.comm.ranks import SINGLE_PROCESS
from bigbatch.core.checks import UserError
from bigbatch.curvature import Hessian, top_eigenvalues
from bigbatch.study.curvature.curvature import curvature
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.train.data.label_skew import classes_of
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.record import read_record
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients
from bigbatch.train.update.weighted_mean import read_weights

CPU = torch.device("cpu")
RANK = Path(__file__).parents[1] / "distributed" / "train.py"
QUIET = {"quiet": True, "tensorboard": False}


def weights_of(folder):
    return read_checkpoint(folder / "last.pt", CPU)["model"]


def run(task, folder, micro_batch=16, **changes):
    recipe = RECIPE.replace({"batch.micro_batch": micro_batch, **changes})
    return fit(task, recipe, out=folder, **QUIET)


def assert_same(state, expected, atol=1e-12):
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=atol)


def token_losses(model, tokens):
    """Of one sequence, without padding."""
    outputs = model(tokens[None, :-1], torch.ones(1, len(tokens) - 1, dtype=torch.float64))
    return F.cross_entropy(outputs[0], tokens[1:], reduction="none")


@pytest.fixture(scope="module")
def reference():
    """Plain PyTorch: the sum of all token losses of the batch over the number of its tokens. Weights, and the losses of the updates."""
    torch.manual_seed(RECIPE.seed)
    model = Words().model().double()
    optimizer, train, losses = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), Words().splits().train, []
    for update in range(7):
        batch = torch.cat([token_losses(model, train[i]) for i in sample_indices(0, 48, 16 * update, 16).tolist()])
        optimizer.zero_grad()
        (batch.sum() / len(batch)).backward()
        optimizer.step()
        losses.append(batch.mean().item())
    return model, losses


@pytest.mark.parametrize("micro_batch", [16, 5])  # of 5: ragged, 5 + 5 + 5 + 1
def test_tokens_weigh_alike_however_the_update_is_cut(tmp_path, reference, micro_batch):
    model, losses = reference
    run(Words(), tmp_path / "run", micro_batch)
    assert_same(weights_of(tmp_path / "run"), model.state_dict())
    recorded = [line["loss"] for line in read_record(tmp_path / "run" / "record.jsonl") if line["kind"] == "update"]
    assert recorded == pytest.approx(losses, rel=1e-12)


def test_two_workers_are_one(tmp_path, reference):
    jobs = [
        {"task": "tests.structured_tasks:Words", "recipe": RECIPE.replace(changes).to_toml(), "out": str(tmp_path / name)}
        for name, changes in {"all_reduce": {"batch.micro_batch": 3}, "sharded": {"comm.kind": "fully_shard"}}.items()
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(RANK, 2, tmp_path, str(tmp_path / "jobs.json"))
    for name in ("all_reduce", "sharded"):
        assert_same(weights_of(tmp_path / name), reference[0].state_dict())
        recorded = [line["loss"] for line in read_record(tmp_path / name / "record.jsonl") if line["kind"] == "update"]
        assert recorded == pytest.approx(reference[1], rel=1e-12)


def test_a_mean_of_means_is_another_loss(tmp_path, reference):
    """The fault that weights are there for: the reference tells it from the mean over tokens, and at one micro-batch it can't be told."""
    run(MeanOfMeans(), tmp_path / "whole")
    assert_same(weights_of(tmp_path / "whole"), reference[0].state_dict())
    run(MeanOfMeans(), tmp_path / "cut", 5)
    with pytest.raises(AssertionError):
        assert_same(weights_of(tmp_path / "cut"), reference[0].state_dict(), atol=1e-3)


def test_an_evaluation_is_the_mean_over_tokens(reference):
    model, data = reference[0], Words().splits().validation
    result = evaluate(model, Words(), splits_of(Words()).validation, recipe=RECIPE)
    with torch.no_grad():
        tokens = torch.cat([token_losses(model, data[i]) for i in range(len(data))])
        right = [
            model(t[None, :-1], torch.ones(1, len(t) - 1).double())[0].argmax(-1) == t[1:] for t in (data[i] for i in range(len(data)))
        ]
    assert result.loss == pytest.approx(float(tokens.mean()), rel=1e-12)
    assert result.score == pytest.approx(float(torch.cat(right).double().mean()), rel=1e-12)
    assert result.num_samples == 13


@pytest.mark.bit_for_bit
def test_resumes_bit_for_bit(tmp_path):
    run(Words(), tmp_path / "straight", 5)
    with stopped_after(3):
        run(Words(), tmp_path / "stopped", 5)
    assert not (tmp_path / "stopped" / "result.json").exists()
    fit(Words(), RECIPE.replace({"batch.micro_batch": 5}), out=tmp_path / "stopped", resume=True, **QUIET)
    for name, value in weights_of(tmp_path / "straight").items():
        assert torch.equal(weights_of(tmp_path / "stopped")[name], value)


@pytest.mark.parametrize("task", [Dicts, Tuples, Nested, InMemory, InMemoryPair], ids=lambda task: task.__name__)
def test_the_structure_changes_nothing(tmp_path, task):
    run(Plain(), tmp_path / "plain", 5)
    run(task(), tmp_path / "run", 5)
    assert_same(weights_of(tmp_path / "run"), weights_of(tmp_path / "plain"), atol=0)
    scores = [
        [line[part] for line in read_record(tmp_path / name / "record.jsonl") if line["kind"] == "evaluation" for part in ("loss", "score")]
        for name in ("plain", "run")
    ]
    assert scores[0] == scores[1]


def test_noise_curvature_and_a_measured_micro_batch(tmp_path):
    """Nested inputs through everything that reads batches besides; curvature is of the mean over tokens where they are counted."""
    looks = {"curvature.every_updates": 3, "curvature.samples": 16}
    seen = {}
    for task in (Plain, Nested):
        fit(
            task(),
            RECIPE.replace({"batch.micro_batch": "auto", "batch.global_batch": 32, **looks}),
            out=tmp_path / task.__name__,
            measure_noise=True,
            **QUIET,
        )
        lines = read_record(tmp_path / task.__name__ / "record.jsonl")
        kinds = {"curvature": "eigenvalues", "noise": "signal_and_noise"}
        seen[task] = [[line[value] for line in lines if line["kind"] == kind] for kind, value in kinds.items()]
    assert seen[Plain] == seen[Nested]
    assert [len(values) for values in seen[Plain]] == [3, 7]


def test_curvature_is_of_the_mean_over_tokens(tmp_path, reference):
    run(Words(), tmp_path / "run", **{"curvature.every_updates": 7, "curvature.samples": 48, "curvature.tolerance": 1e-6})
    found = [line for line in read_record(tmp_path / "run" / "record.jsonl") if line["kind"] == "curvature"][-1]["eigenvalues"][0]
    model, train = reference[0], Words().splits().train
    tokens = sum(len(train[i]) - 1 for i in range(48))
    batches = [Words().collate([train[i] for i in range(48)])]
    exact = Hessian(model, lambda outputs, targets: Words().losses(outputs, targets) * 48 / tokens, batches)
    assert found == pytest.approx(float(top_eigenvalues(exact, 1, tolerance=1e-6).values[0]), rel=1e-5)


@pytest.mark.slow
def test_a_study_of_checkpoints(tmp_path):
    for name, lr in (("one", 0.5), ("other", 0.2)):
        run(Words(), tmp_path / name, **{"optimizer.lr": lr})
    study = curvature(tmp_path / "one", against=tmp_path / "other", task=Words(), samples=48, points=3, quiet=True)
    result = evaluate(*_model_and_data(tmp_path / "one"), recipe=RECIPE)
    assert study.runs[0].loss == pytest.approx(result.loss, rel=1e-6)


def _model_and_data(folder):
    model = Words().model().double()
    model.load_state_dict(weights_of(folder))
    return model, Words(), splits_of(Words()).train


def test_noise_weighs_a_micro_batch_by_its_share_of_the_tokens():
    """Two micro-batches of 2 samples, with 3 and 1 tokens: they weigh 3/4 and 1/4 of the mean gradient, which the divisors say."""
    told = []

    class Linear:
        name = "by hand"

        def losses(self, outputs, targets):
            return outputs.flatten()

        def weights(self, targets):
            return targets

    passes = [Pass(torch.ones(2, 1), torch.tensor(tokens)) for tokens in ([1.0, 2.0], [0.5, 0.5])]
    weighted = read_weights(Linear(), passes, idle=0, ranks=SINGLE_PROCESS)
    assert (weighted.own, weighted.total) == (4.0, 4.0)
    model = torch.nn.Linear(1, 1)
    settings = {"divisor": weighted.total, "precision": "float32", "device": CPU}
    accumulate_gradients(model, Linear(), weighted.passes, after_backward=lambda n, divisor: told.append(n / divisor), **settings)
    assert told == [3 / 4, 1 / 4]
    assert model.weight.grad.item() == 4 / 4  # four losses of slope 1, over four tokens


class OneWeight(Words):
    def weights(self, targets):
        return super().weights(targets).sum()


class Negative(Words):
    def weights(self, targets):
        return super().weights(targets) - 3


class Zero(Words):
    def weights(self, targets):
        return 0 * super().weights(targets)


class Infinite(Words):
    def weights(self, targets):
        return super().weights(targets) / 0.0


class PerToken(Words):
    def losses(self, outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-100, reduction="none")


class OneValue(Words):
    def collate(self, samples):
        return super().collate(samples)[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (OneWeight, r"task tests/words: weights have shape \(\): must be one per sample, \(16,\)"),
        (Negative, "task tests/words: a weight in the update is negative or not finite"),
        (Infinite, "task tests/words: a weight in the update is negative or not finite"),
        (Zero, "task tests/words: the weights of the update add up to 0: must be above zero.*raise the batch"),
        (PerToken, r"task tests/words: losses have shape \(16, 11\): must be one per sample, \(16,\).*Task.weights"),
        (OneValue, r"collate\(samples\) returned a dict of 'ids', 'mask': must be a pair; return \(inputs, targets\)"),
    ],
)
def test_refused(task, message):
    with pytest.raises(UserError, match=message):
        fit(task(), RECIPE, **QUIET)


def test_a_model_without_the_keyword_is_refused_by_name():
    with pytest.raises(
        UserError, match="task tests/points: its model does not take inputs that are a dict of 'a', 'b'.*unexpected keyword.*Task.outputs"
    ):
        fit(OfAnotherKeyword(), RECIPE, **QUIET)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (Dicts, {"adversarial": {"eps": 0.1, "low": 0.0, "high": 1.0}}, r"\[adversarial\] with inputs that are a dict of 'a'.*one tensor"),
        (Nested, {"adversarial": {"eps": 0.1, "low": 0.0, "high": 1.0}}, r"\[adversarial\] with inputs that are a dict of 'points'"),
        (Words, {"augmentation": {"flip": True}}, r"\[augmentation\]: the training set is not in memory, or has a collate"),
        (InMemory, {"augmentation": {"flip": True}}, r"\[augmentation\]: samples of 3 tensors"),
    ],
)
def test_what_needs_one_tensor_is_refused(task, changes, message):
    with pytest.raises(UserError, match=message):
        fit(task(), RECIPE.replace(changes), **QUIET)


def test_label_skew_needs_classes():
    with pytest.raises(UserError, match="targets are no classes"):
        classes_of(Dicts().splits().train)
    with pytest.raises(UserError, match="targets are no classes"):
        classes_of(InMemory().splits().train)
    assert torch.equal(classes_of(Plain().splits().train), classes_of(InMemoryPair().splits().train))
