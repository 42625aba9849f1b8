import os
import signal
import threading
import time

import pytest
import torch
from tests.train.parameter_server.test_dispatch import NAMED, NORMED, QUIET, Digits, Normed, run, saved
from torch import nn

import bigbatch
from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.core.checks import Interrupted, RecipeError
from bigbatch.train.parameter_server.dispatch import check_parameter_server_recipe
from bigbatch.train.parameter_server.local_steps import LocalSteps
from bigbatch.train.parameter_server.server import build_work_queue
from bigbatch.train.parameter_server.step import build_server_optimizer
from bigbatch.train.state.record import read_record
from bigbatch.train.trainer import fit

PLAIN = {"precision": "float64", "optimizer.momentum": 0.0, "optimizer.nesterov": False}
LOCAL = {"comm.period": 5, "comm.outer_lr": 0.7, "comm.outer_momentum": 0.9}


def assert_close(one, other, atol=1e-12):
    assert one["model"].keys() == other["model"].keys()
    for key, value in one["model"].items():
        torch.testing.assert_close(other["model"][key], value, rtol=0, atol=atol)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_worker_with_outer_rate_1_is_plain_training(tmp_path, momentum):
    """At the schedule's rates, clipped, with batch norm's running statistics, and with momentum, which stays with the worker."""
    recipe = NORMED.replace({**PLAIN, "optimizer.momentum": momentum})
    fit(Normed(), recipe.replace({"comm": {"kind": "all_reduce"}}), out=tmp_path / "alone", **QUIET)
    result = run(Normed(), recipe.replace({"comm.period": 7}), tmp_path / "served", workers=1)  # 60 updates: the last item has four
    assert (result.updates, result.samples) == (9, recipe.total_samples)
    assert_close(saved(tmp_path / "alone"), saved(tmp_path / "served"))
    start, *_ = read_record(tmp_path / "served" / "record.jsonl")
    assert start["bit_for_bit"] is (momentum == 0)


def test_several_servers_change_nothing_and_workers_clip(tmp_path):
    base = NAMED.replace({**PLAIN, **LOCAL, "optimizer.clip_norm": 0.5})
    run(Digits(), base, tmp_path / "one")
    run(Digits(), base.replace({"comm.servers": 3}), tmp_path / "three")
    one, three = saved(tmp_path / "one"), saved(tmp_path / "three")
    assert_close(one, three)
    assert one["optimizer"]["param_groups"][0]["lr"] == 0.7
    for key, state in one["optimizer"]["state"].items():  # of the outer optimizer
        torch.testing.assert_close(three["optimizer"]["state"][key]["momentum_buffer"], state["momentum_buffer"], rtol=0, atol=1e-12)
    run(Digits(), base.replace({"optimizer.clip_norm": None}), tmp_path / "unclipped")
    key = "1.weight" if "1.weight" in one["model"] else next(iter(one["model"]))
    assert not torch.equal(saved(tmp_path / "unclipped")["model"][key], one["model"][key])


@pytest.mark.parametrize("servers", [1, 2])
def test_a_quorum_learns_and_each_sample_is_used_once(tmp_path, capsys, servers):
    changes = {
        "comm.mode": "asynchronous",
        "comm.backup_workers": 1,
        "comm.staleness_bound": 2,
        "comm.period": 4,
        "comm.outer_momentum": 0.3,
    }
    recipe = NAMED.replace({**PLAIN, **changes, "comm.servers": servers, "budget.epochs": 20, "budget.updates": None})
    result = run(Digits(), recipe, tmp_path, workers=4, quiet=False)
    assert "staleness adds to outer_momentum = 0.3: if it diverges, set outer_momentum to 0, or set" in capsys.readouterr().err
    assert result.test_score > 0.9
    end = read_record(tmp_path / "record.jsonl")[-1]
    assert end["applied"] == [[0, recipe.total_samples]]
    assert max(map(int, end["staleness"])) <= 2
    assert result.updates >= recipe.total_samples // (3 * 4 * recipe.batch.global_batch // 4)


@pytest.mark.parametrize("changes", [{"comm.backup_workers": 1}, {"comm.gradients_per_update": 3}], ids=["quorum", "asynchronous"])
def test_all_servers_take_the_same_displacements_and_give_the_same_version(tmp_path, monkeypatch, changes):
    """Every weight goes the same way, by the item's place: so all are equal whenever a worker has pulled them."""
    equal = []

    class FromZero(Digits):
        def model(self, **options):
            model = super().model(**options)
            for p in model.parameters():
                nn.init.zeros_(p)
            return model

    def take(steps, work):
        weights = torch.cat([p.detach().flatten() for p in steps._parameters])
        equal.append(torch.allclose(weights, weights[0].expand_as(weights), rtol=1e-9, atol=1e-9))
        return torch.tensor(1.0), [torch.full_like(p, work.start % 977 / 1e5) for p in steps._parameters]

    monkeypatch.setattr(LocalSteps, "take", take)
    asynchronous = {"comm.mode": "asynchronous", "comm.staleness_bound": 2, "comm.servers": 3}
    run(FromZero(), NAMED.replace({**PLAIN, **LOCAL, **asynchronous, **changes, "budget.updates": 300}), tmp_path, workers=4)
    assert len(equal) >= 240
    assert all(equal)


def test_items_updates_and_rates():
    """Of 4 workers with 8 samples an update each, of whose items of 5 updates the first 3 are waited for."""
    recipe = NAMED.replace({"comm.period": 5, "comm.backup_workers": 1, "schedule.decay.kind": "linear"})
    queue = build_work_queue(recipe, 4)
    assert (queue.global_batch, queue.gradients_per_update) == (3 * 5 * 8, 3)
    items = [queue.assign(number) for number in range(4)]
    assert [work.num_samples for work in items] == [40] * 4
    model, seen = nn.Linear(2, 1), []

    def gradient(work):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        seen.append((work.start, work.num_samples, steps.optimizer.param_groups[0]["lr"]))
        return torch.tensor(float(work.num_samples))

    steps, rates = LocalSteps(recipe, model, LocalUpdates(8, 5, 3), gradient), []
    for work in (items[0], items[2], items[3], WorkItem(9, 0, 0, 120, 12)):
        seen.clear()
        before = [p.detach().clone() for p in model.parameters()]
        sum_loss, went = steps.take(work)
        assert sum_loss == work.num_samples
        assert [(start, n) for start, n, _ in seen][:2] == [(work.start, 8), (work.start + 8, min(8, work.num_samples - 8))]
        for p, theta, delta in zip(model.parameters(), before, went, strict=True):
            torch.testing.assert_close(theta - delta, p.detach())
            assert p.grad is None
        rates.append([rate for *_, rate in seen][1:])  # of the updates before the last
    assert rates[0] == rates[1]  # of one update
    assert rates[2] != rates[0]
    assert rates[3] == rates[2][:1]


def test_the_default_is_gradients_and_the_recipes_optimizer():
    assert NAMED.comm.period == 1
    assert not NAMED.comm.has_outer_optimizer
    assert build_server_optimizer(Digits().model(), NAMED).param_groups[0]["lr"] == NAMED.optimizer.lr
    for changes in ({"comm.period": 2}, {"comm.outer_lr": 0.5}, {"comm.outer_momentum": 0.5}):
        recipe = NAMED.replace(changes)
        group = build_server_optimizer(Digits().model(), recipe).param_groups[0]
        assert recipe.comm.has_outer_optimizer
        assert (group["lr"], group["momentum"]) == (recipe.comm.outer_lr, recipe.comm.outer_momentum)
        assert group["nesterov"] is (recipe.comm.outer_momentum > 0)


@pytest.mark.slow
@pytest.mark.bit_for_bit
@pytest.mark.parametrize("servers", [1, 2])
def test_a_stopped_synchronous_run_without_inner_state_resumes_bit_for_bit(tmp_path, servers):
    recipe = NAMED.replace({**PLAIN, **LOCAL, "comm.servers": servers, "budget.updates": 1000})
    run(Digits(), recipe, tmp_path / "straight")

    def stop():
        while (tmp_path / "broken/record.jsonl").read_text().count('"kind": "update"') < 30:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/record.jsonl").touch()
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="continue with the same command and --resume"):
        run(Digits(), recipe, tmp_path / "broken", save_every_s=0)
    thread.join()
    assert 0 < saved(tmp_path / "broken")["progress"][0][1] < 200
    run(Digits(), recipe, tmp_path / "broken", resume=True)
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "broken")
    assert all(torch.equal(other["model"][key], value) for key, value in one["model"].items())


def test_refusals():
    local = NAMED.replace({"comm.period": 8})
    with pytest.raises(
        RecipeError, match="global_batch = 32 of 3 workers with local steps: each .* equally many samples; choose a multiple of 3"
    ):
        check_parameter_server_recipe(local, 3)
    message = r"comm.period = 8, comm.outer_lr = 1, comm.outer_momentum = 0 without a parameter server: .* use bigbatch train --workers"
    with pytest.raises(RecipeError, match=message):
        bigbatch.fit("digits/mlp", local, **QUIET)
    with pytest.raises(RecipeError, match="40 workers for a global_batch of 32"):
        build_work_queue(local, 40)
    check_parameter_server_recipe(local.replace({"comm.servers": 2, "optimizer.clip_norm": 1.0}), 4)  # workers clip, who have it whole
