"""Branches of a run: the run itself where nothing differs, other batches and rates where they do, and what is refused."""

import json
import math

import pytest
import torch
from tests import structured_tasks

from bigbatch import Recipe, fit
from bigbatch.core.checks import CheckpointError, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.tasks import load_task
from bigbatch.train import branch as branch_module
from bigbatch.train import loop
from bigbatch.train.branch import Branch, train_branch

SGD = Recipe.named("digits/mlp").replace({"budget.epochs": 4, "batch.micro_batch": 16})
ADAMW = Recipe.from_dict({**SGD.to_dict(), "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.1}})
BATCH = SGD.batch.global_batch
TASK = load_task("digits/mlp")


@pytest.fixture(scope="module", params=[SGD, ADAMW], ids=["sgd", "adamw"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    fit(TASK, request.param, out=out, keep_checkpoints=True, measure_test=False, quiet=True, tensorboard=False)
    return request.param, sorted(out.glob("update-*.pt"))


@pytest.fixture
def ends(monkeypatch):
    """What the branches of a test end in."""
    seen, train = [], branch_module.train

    def watched(run):
        result = train(run)
        seen.append((run.model.state_dict(), run.optimizer.state_dict()))
        return result

    monkeypatch.setattr(branch_module, "train", watched)
    return seen


def updates_of(path):
    return int(path.stem.partition("-")[2])


@pytest.mark.bit_for_bit
def test_a_branch_that_changes_nothing_is_the_run_itself_bit_for_bit(run, ends):
    recipe, (first, second, *_) = run
    updates = updates_of(second) - updates_of(first)
    assert train_branch(TASK, recipe, first, Branch(updates * BATCH)).updates == updates
    (weights, optimizer), saved = ends[0], torch.load(second, weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in saved["model"].items())
    for number, state in saved["optimizer"]["state"].items():
        for name, value in state.items():
            here = optimizer["state"][number][name]
            assert torch.equal(here, value) if isinstance(value, torch.Tensor) else here == value, name


def test_no_samples_give_the_loss_of_the_checkpoint(run):
    recipe, (_, path, *_) = run
    lines = map(json.loads, (path.parent / "record.jsonl").read_text().splitlines())
    recorded = next(line for line in lines if line["kind"] == "evaluation" and line["update"] == updates_of(path))
    result = train_branch(TASK, recipe, path, Branch(0))
    assert (result.loss, result.updates) == (recorded["loss"], 0)


def test_the_loss_over_a_part_of_the_held_out_samples_is_of_that_part(run):
    recipe, (path, *_) = run
    index = torch.arange(50) * 200 // 50
    model = TASK.model()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    images, labels = TASK.splits().validation.tensors
    expected = torch.nn.functional.cross_entropy(model.eval()(images[index]), labels[index]).item()
    assert train_branch(TASK, recipe, path, Branch(0, held_out=50)).loss == pytest.approx(expected, rel=1e-5)
    assert train_branch(TASK, recipe, path, Branch(0, held_out=5000)).loss == train_branch(TASK, recipe, path, Branch(0)).loss


def test_a_multiple_takes_as_many_samples_in_fewer_updates_at_the_asked_rates(run, monkeypatch):
    recipe, (path, *_) = run
    rates, factor = [], branch_module.RateSource.factor

    def seen(self, clock, global_batch):
        rates.append((clock.samples, global_batch, factor(self, clock, global_batch)))
        return rates[-1][2]

    monkeypatch.setattr(branch_module.RateSource, "factor", seen)
    began = updates_of(path) * BATCH
    result = train_branch(TASK, recipe, path, Branch(10 * BATCH, multiple=4, rate_factor=0.5, decays=True))
    assert result.updates == 3  # of 4, 4 and 2 of the run's batches
    peak = schedule_of(recipe)(Clock(began, updates_of(path)))
    expected = [(began + 4 * i * BATCH, 4 * BATCH, pytest.approx(0.5 * peak * (1 - 0.4 * i), rel=1e-12)) for i in range(3)]
    assert [seen for seen in rates if seen[1] == 4 * BATCH] == expected  # the others ask for the rate that it begins from


def test_orders_of_samples_differ_and_each_repeats(run):
    recipe, (path, *_) = run
    losses = [train_branch(TASK, recipe, path, Branch(6 * BATCH, order=order)).loss for order in (0, 1, 1, 2)]
    assert losses[1] == losses[2]
    assert len(set(losses)) == 3


def test_branches_of_a_window_see_the_same_samples_in_the_same_order(run, monkeypatch):
    recipe, (path, *_) = run
    seen, load = [], loop.open_stream

    def watched(recipe, train, clock, upcoming, **keywords):
        for inputs, targets in load(recipe, train, clock, upcoming, **keywords):
            seen[-1].append(inputs.clone())
            yield inputs, targets

    monkeypatch.setattr(loop, "open_stream", watched)
    for multiple in (1, 4):
        seen.append([])
        train_branch(TASK, recipe, path, Branch(8 * BATCH, multiple=multiple, order=2))
    one, four = (torch.cat(batches)[: 8 * BATCH] for batches in seen)
    assert torch.equal(one, four)


def test_a_branch_that_diverges_is_a_result(run):
    recipe, (path, *_) = run
    result = train_branch(TASK, recipe, path, Branch(20 * BATCH, rate_factor=1e30))
    assert result.diverged
    assert math.isnan(result.loss)


def test_what_can_not_be_branched_is_refused(run, tmp_path):
    recipe, (path, *_) = run
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        train_branch(TASK, recipe.replace({"optimizer.lr": 0.01}), path, Branch(64))
    with pytest.raises(RecipeError, match="the run ends at"):
        train_branch(TASK, recipe, path, Branch(100 * recipe.num_train_samples))
    with pytest.raises(RecipeError, match="multiple of a fixed batch"):
        train_branch(TASK, recipe.replace({"batch.rule.kind": "norm_test"}), path, Branch(64))
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        train_branch(TASK, recipe, damaged, Branch(64))


def test_a_rate_that_was_learned_goes_on_where_it_was(tmp_path, ends):
    """AutoWU's schedule has a state: a branch that began it anew would start from its lowest rate."""
    recipe = SGD.replace({"schedule.warmup.kind": "autowu", "schedule.decay.kind": "constant", "budget.epochs": 12})
    fit(TASK, recipe, out=tmp_path / "run", keep_checkpoints=True, measure_test=False, quiet=True, tensorboard=False)
    lines = map(json.loads, (tmp_path / "run" / "record.jsonl").read_text().splitlines())
    ended = next(line["update"] for line in lines if line["kind"] == "switch")
    first, second = [path for path in sorted((tmp_path / "run").glob("update-*.pt")) if updates_of(path) > ended][:2]
    train_branch(TASK, recipe, first, Branch((updates_of(second) - updates_of(first)) * BATCH))
    saved = torch.load(second, weights_only=True)["model"]
    assert all(torch.equal(ends[0][0][name], value) for name, value in saved.items())


def test_a_part_of_held_out_samples_is_collated_as_the_task_does(tmp_path):
    recipe = structured_tasks.RECIPE
    fit(structured_tasks.Words(), recipe, out=tmp_path, keep_checkpoints=True, measure_test=False, quiet=True, tensorboard=False)
    path = sorted(tmp_path.glob("update-*.pt"))[0]
    assert math.isfinite(train_branch(structured_tasks.Words(), recipe, path, Branch(0, held_out=4)).loss)
