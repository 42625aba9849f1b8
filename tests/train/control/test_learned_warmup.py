import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks

import bigbatch
from bigbatch import Interrupted, Recipe, fit
from bigbatch.core.checks import Diverged, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.schedules import AutoWU, schedule_of
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.state.record import read_record

SCRIPT = Path(bigbatch.__file__).parents[2] / "tests" / "distributed" / "train.py"
AUTOWU = Recipe.named("digits/mlp").replace(
    {
        "schedule": {"warmup": {"kind": "autowu", "tests": 60}},
        "batch": {"global_batch": 64, "micro_batch": 64},
        "budget": {"epochs": 8},
        "optimizer.lr": 10.0,
        "optimizer.momentum": 0.9,
        "seed": 1,
    }
)
RETURNS = {"schedule.warmup.return_to_minimum": True}
EXPLODES = {"optimizer.lr": 1e30, "schedule.warmup.grow_from": 1e-34, "schedule.warmup.tests": 20, **RETURNS}
"""The loss is infinite before patience is over."""


class Stops(DigitsMLP):
    """Interrupted in its so many-th update."""

    def __init__(self, update):
        super().__init__()
        self.left = update

    def losses(self, outputs, targets):
        self.left -= outputs.requires_grad
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(outputs, targets)


def run(recipe, out=None, task="digits/mlp", **options):
    return fit(task, recipe, out=out, quiet=True, tensorboard=False, measure_test=False, **options)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def lines_of(folder, *kinds):
    lines = [line for line in read_record(folder / "record.jsonl") if line["kind"] in kinds]
    return [{key: value for key, value in line.items() if key != "test_s"} for line in lines]


def test_the_record_shows_the_rate_and_the_switch(tmp_path):
    run(AUTOWU, tmp_path)
    (switch,), updates = lines_of(tmp_path, "switch"), lines_of(tmp_path, "update")
    assert switch["reason"] == "the loss has turned"
    autowu, clock = schedule_of(AUTOWU), Clock()
    for line in updates:
        assert line["lr"] == pytest.approx(10 * autowu(clock), rel=1e-12)
        autowu.observe(clock, line["loss"])
        clock = clock.after(line["global_batch"])
        if clock.updates == switch["update"]:
            assert autowu.switch.factor == switch["factor"]
            assert clock.samples == switch["samples"]
    assert autowu.switch is not None
    lost = next(i for i, line in enumerate(read_record(tmp_path / "record.jsonl")) if line["kind"] == "switch")
    assert read_record(tmp_path / "record.jsonl")[lost - 1]["update"] == switch["update"], "in order"


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("changes", [{}, RETURNS, EXPLODES, {"batch.rule": {"kind": "norm_test", "theta": 0.6, "every_updates": 10}}])
@pytest.mark.parametrize("update", [2, pytest.param(26, marks=pytest.mark.slow)])
def test_killed_inside_the_warm_up_it_ends_in_the_same_schedule_and_weights(tmp_path, changes, update):
    recipe = AUTOWU.replace(changes)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "cut", Stops(update), save_every_s=0)
    assert lines_of(tmp_path / "cut", "switch") == []
    run(recipe, tmp_path / "cut", resume=True)
    for kind in ("switch", "update", "lost", "batch"):
        assert lines_of(tmp_path / "cut", kind) == lines_of(tmp_path / "whole", kind)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name])


def test_a_loss_that_is_not_finite_ends_the_run_unless_weights_return(tmp_path):
    with pytest.raises(Diverged, match=r"must be finite; lower the peak rate, or set schedule.warmup.return_to_minimum = true to go on"):
        run(AUTOWU.replace({**EXPLODES, "schedule.warmup.return_to_minimum": False}), tmp_path / "ends")
    result = run(AUTOWU.replace(EXPLODES), tmp_path / "returns")
    (switch,), lost = lines_of(tmp_path / "returns", "switch"), lines_of(tmp_path / "returns", "lost")
    assert result.validation_score > 0.9
    assert switch["reason"] == "the loss is not finite"
    assert len(lost) <= 1, "weights may be lost before a loss is"
    assert switch["minimum"] - 1437 * 8 / 20 - 64 <= switch["weights_of"] <= switch["minimum"]
    assert all(value.abs().max() < 10 for value in weights(tmp_path / "returns").values())


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_weights_and_optimizer_state_return(tmp_path):
    """At the switch, the weights are those of a checkpoint of the update that the record names."""
    recipe = AUTOWU.replace(RETURNS)
    run(recipe, tmp_path / "whole")
    (switch,) = lines_of(tmp_path / "whole", "switch")

    def state_after(updates):
        folder = tmp_path / str(updates)
        with pytest.raises(Interrupted):
            run(recipe, folder, Stops(updates), save_every_s=0)
        return torch.load(folder / "last.pt", weights_only=True)

    back, then = state_after(switch["weights_of"] // 64), state_after(switch["update"])
    assert then["progress"][0][1] == switch["update"]
    for name, value in back["model"].items():
        assert torch.equal(value, then["model"][name])
    for number, state in back["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], then["optimizer"]["state"][number]["momentum_buffer"])


def test_groups_keep_their_ratios():
    recipe = AUTOWU.replace({"optimizer": {"name": "muon", "lr": 1.0, "adam_lr": 0.1}})
    seen = []
    step = torch.optim.Optimizer.zero_grad

    def look(self, *rest, **named):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "zero_grad", look)
        run(recipe)
    assert len({lrs[0] for lrs in seen}) > 100
    assert all(max(lrs) == pytest.approx(10 * min(lrs)) for lrs in seen if min(lrs) > 0)


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_two_workers_decide_alike_and_as_one(tmp_path):
    recipes = {"plain": AUTOWU, "returns": AUTOWU.replace(EXPLODES), "gossip": AUTOWU.replace({"comm": {"kind": "gossip"}})}
    recipes = {name: recipe.replace({"precision": "float64", "batch.micro_batch": 16}) for name, recipe in recipes.items()}

    def job(name, out, **options):
        return {"task": "digits/mlp", "recipe": recipes[name].to_toml(), "out": str(tmp_path / out), "options": options}

    jobs = [*(job(name, name) for name in recipes), job("plain", "cut", stop_after=40), job("plain", "cut", resume=True)]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(SCRIPT, 2, tmp_path, str(tmp_path / "jobs.json"))
    for name in ("plain", "returns"):
        run(recipes[name], tmp_path / "alone" / name)
        (mine,), (theirs,) = lines_of(tmp_path / "alone" / name, "switch"), lines_of(tmp_path / name, "switch")
        assert theirs["update"] == mine["update"]
        assert theirs["factor"] == pytest.approx(mine["factor"], rel=1e-6)
        for key, value in weights(tmp_path / "alone" / name).items():
            torch.testing.assert_close(weights(tmp_path / name)[key], value, rtol=0, atol=1e-6)
    assert lines_of(tmp_path / "gossip", "switch")
    kinds = ("switch", "update")
    assert lines_of(tmp_path / "cut", *kinds) == lines_of(tmp_path / "plain", *kinds)
    for key, value in weights(tmp_path / "plain").items():
        assert torch.equal(weights(tmp_path / "cut")[key], value)


def test_a_recipe_makes_the_schedule():
    recipe = AUTOWU.replace({"schedule.warmup": {"kind": "autowu", "share": 0.25, "decay": "constant_cosine", "patience": 1}})
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert isinstance(schedule_of(recipe), AutoWU)
    total = recipe.total_samples
    assert schedule_of(recipe)(Clock(total // 8)) == pytest.approx(1e-5 ** (1 - (total // 8) / (total / 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.decay.kind": "cosine"}, 'decay.kind = "cosine" with warmup.kind = "autowu": has a decay of its own'),
        ({"comm": {"kind": "parameter_server"}}, 'comm.kind = "parameter_server": its workers go on before a loss is known'),
        ({"batch.rule": {"kind": "adascale", "base_batch": 8}}, 'batch.rule.kind = "adascale": both set the rate; leave one out'),
        ({"batch.rule": {"kind": "increase_batch"}}, 'batch.rule.kind = "increase_batch": both set the rate'),
        ({"batch.rule": {"kind": "seesaw"}}, 'batch.rule.kind = "seesaw": both set the rate'),
        ({**RETURNS, "comm": {"kind": "local_sgd"}}, 'return_to_minimum with comm.kind = "local_sgd": takes back what all workers share'),
        ({**RETURNS, "comm.compression": {"kind": "top_k"}}, "without a compression that makes up for errors"),
        ({"schedule.warmup.grow_from": 1.0}, "schedule.warmup.grow_from = 1.0: input should be less than 1"),
        ({"schedule.warmup.share": 0.0}, "schedule.warmup.share = 0.0: input should be greater than 0"),
        ({"schedule.warmup.decay": "linear"}, "schedule.warmup.decay = 'linear'"),
        ({"schedule.warmup.epochs": 5}, "unknown field 'schedule.warmup.epochs'"),
    ],
)
def test_impossible_recipes(changes, message):
    with pytest.raises(RecipeError) as caught:
        AUTOWU.replace(changes)
    assert message in str(caught.value)
