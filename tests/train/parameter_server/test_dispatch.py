import json
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch
from tests.comm.parameter_server.served import threads
from tests.structured_tasks import RECIPE as STRUCTURED
from tests.structured_tasks import Words, WordStream
from torch import nn

import bigbatch
from bigbatch import Recipe
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.supervisor import reserved_ports
from bigbatch.core.checks import CheckpointError, Interrupted, RecipeError, UserError
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.parameter_server.dispatch import check_parameter_server_recipe, take_part
from bigbatch.train.parameter_server.server import build_work_queue, run_server
from bigbatch.train.parameter_server.shard_servers import run_shard_server
from bigbatch.train.parameter_server.worker import run_worker
from bigbatch.train.run import Options
from bigbatch.train.state.record import read_record
from bigbatch.train.trainer import fit

QUIET = {"quiet": True, "tensorboard": False}
NAMED = Recipe.named("digits/mlp").replace({"comm.kind": "parameter_server", "budget": {"updates": 60}})


def alike(model):
    """Weights from a generator of their own: threads share torch's, so that each would start elsewhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 8)
    return model


class Digits(DigitsMLP):
    def model(self, **options):
        return alike(super().model(**options))


class Normed(DigitsMLP):
    name = "digits/normed"

    def model(self):
        return alike(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)))


NORMED = NAMED.replace({"precision": "float64", "batch.global_batch": 50, "batch.ghost_batch": 10, "optimizer.clip_norm": 0.5})


def run(task, recipe, out, *, workers=2, **options):
    """All processes of a run as threads of this one; the server is the main thread. For tasks that need no processes to load their data:
    forked while another thread draws from torch's generator, they would wait for its lock forever."""
    servers = recipe.comm.servers
    options = {**QUIET, **options}
    with reserved_ports(servers) as ports:
        facts = (tuple(f"tcp://127.0.0.1:{port}" for port in ports), "token", workers)
        others = [partial(run_shard_server, task, recipe, ProcessRole(True, i, *facts)) for i in range(1, servers)]
        others += [partial(run_worker, task, recipe, ProcessRole(False, i, *facts)) for i in range(workers)]
        with threads(*others):
            return run_server(task, recipe, ProcessRole(True, 0, *facts), Options(out=out, **options))


def saved(out):
    return torch.load(out / "last.pt", weights_only=True)


def test_synchronous_is_one_worker_alone(tmp_path):
    alone = fit(Normed(), NORMED.replace({"comm": {"kind": "all_reduce"}}), out=tmp_path / "alone", **QUIET)
    served = run(Normed(), NORMED, tmp_path / "served", workers=3)
    assert (served.updates, served.samples) == (alone.updates, alone.samples)
    assert served.test_loss == pytest.approx(alone.test_loss, abs=1e-10)
    assert served.validation_score == pytest.approx(alone.validation_score, abs=1.5 / 200)  # one sample near a tie may go either way
    one, other = saved(tmp_path / "alone"), saved(tmp_path / "served")
    for key, value in one["model"].items():  # running statistics too
        torch.testing.assert_close(other["model"][key], value, rtol=0, atol=1e-10)
    lines = [[line for line in read_record(tmp_path / name / "record.jsonl") if line["kind"] == "update"] for name in ("alone", "served")]
    for mine, theirs in zip(*lines, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-10)
        assert {**theirs, "loss": 0} == {**mine, "loss": 0}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Words, "task tests/words: its weights with a parameter server: no worker knows the sum"),
        (type("Mean", (WordStream,), {"weights": None}), "task tests/words: a stream with a parameter server"),
    ],
)
def test_tasks_that_do_not_go_with_it(task, message):
    role = ProcessRole(False, 0, ("tcp://127.0.0.1:1",), "token", 2)
    with pytest.raises(UserError, match=message):
        take_part(task(), STRUCTURED.replace({"comm.kind": "parameter_server"}), role, Options(**QUIET))


@pytest.mark.parametrize(
    "changes", [{"comm.reduction": "sum", "optimizer.weight_decay": 1e-3}, {"comm.servers": 3}], ids=["sum", "servers"]
)
def test_a_sum_and_several_servers_change_nothing(tmp_path, changes):
    base = NAMED.replace({"precision": "float64", "optimizer.weight_decay": 1e-3, "optimizer.clip_norm": None})
    plain = fit(Digits(), base.replace({"comm": {"kind": "all_reduce"}}), out=tmp_path / "alone", **QUIET)
    served = run(Digits(), base.replace(changes), tmp_path / "served")
    assert served.test_loss == pytest.approx(plain.test_loss, abs=1e-10)
    one, other = saved(tmp_path / "alone"), saved(tmp_path / "served")
    for key, value in one["model"].items():
        torch.testing.assert_close(other["model"][key], value, rtol=0, atol=1e-10)
    assert other["optimizer"]["state"].keys() == one["optimizer"]["state"].keys()


def test_asynchronous_is_recorded_and_told(tmp_path, capsys):
    changes = {
        "comm.mode": "asynchronous",
        "comm.staleness_bound": 2,
        "comm.damping": "inverse",
        "budget.epochs": 8,
        "budget.updates": None,
    }
    recipe = NAMED.replace(changes)
    result = run(Digits(), recipe, tmp_path, workers=4, quiet=False)
    assert "digits/mlp  updates depend on which gradient arrives first: not reproducible bit for bit\n" in capsys.readouterr().err
    assert result.test_score > 0.9
    lines = read_record(tmp_path / "record.jsonl")
    assert [line["update"] for line in lines if line["kind"] == "update"] == list(range(1, result.updates + 1))
    start, end = lines[0], lines[-1]
    assert start["bit_for_bit"] is False
    assert start["workers"] == 4
    told = [line["histogram"] for line in lines if line["kind"] == "staleness"]
    assert len(told) == 9  # each epoch, and the test
    assert sum(told[-1].values()) == result.updates
    assert max(map(int, told[-1])) <= end["staleness_bound"] == 2
    assert end["applied"] == [[0, recipe.total_samples]]
    size = sum(4 * p.numel() for p in Digits().model().parameters())
    assert end["received_bytes"] == size * result.updates
    assert end["sent_bytes"] >= size * result.updates
    assert bigbatch.Result.from_json((tmp_path / "result.json").read_text()) == result


@pytest.mark.slow
@pytest.mark.bit_for_bit
@pytest.mark.parametrize("servers", [1, 2])
def test_a_stopped_synchronous_run_resumes_bit_for_bit_with_any_number_of_workers(tmp_path, servers):
    recipe = NAMED.replace({"comm.gradients_per_update": 4, "comm.servers": servers, "budget.updates": 300})
    run(Digits(), recipe, tmp_path / "straight", workers=4)

    def stop():
        while (tmp_path / "broken/record.jsonl").read_text().count('"kind": "update"') < 30:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/record.jsonl").touch()
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="continue with the same command and --resume"):
        run(Digits(), recipe, tmp_path / "broken", workers=2, save_every_s=0)
    thread.join()
    assert 0 < saved(tmp_path / "broken")["progress"][0][1] < 300
    run(Digits(), recipe, tmp_path / "broken", workers=3, resume=True)
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "broken")
    assert all(torch.equal(other["model"][key], value) for key, value in one["model"].items())
    updates = [line["update"] for line in read_record(tmp_path / "broken/record.jsonl") if line["kind"] == "update"]
    assert updates == list(range(1, 301))


def test_a_target_ends_the_run_and_a_finished_one_is_returned(tmp_path):
    recipe = NAMED.replace({"budget.updates": 2000})
    result = run(Digits(), recipe, tmp_path, target=0.6, measure_test=False)
    assert result.reached
    assert result.updates < 2000
    role = ProcessRole(True, 0, ("tcp://127.0.0.1:1",), "token", 2)
    assert run_server(Digits(), recipe, role, Options(out=tmp_path, resume=True)).updates == result.updates


@pytest.mark.parametrize(
    ("changes", "measure", "message"),
    [
        ({"comm.kind": "all_reduce"}, False, "comm.kind = 'all_reduce' in a run with a parameter server"),
        ({"batch.rule": {"kind": "norm_test"}}, False, "batch.rule with a parameter server"),
        ({}, True, "measure_noise with a parameter server"),
        ({"comm.reduction": "sum", "optimizer.name": "adam"}, False, 'comm.reduction = "sum" with adam: the rate that matches'),
        ({"comm.servers": 2, "optimizer.clip_norm": 1.0}, False, "optimizer.clip_norm with comm.servers = 2"),
        ({"comm.backup_workers": 4}, False, "comm.backup_workers = 4 of 4 workers: none would be left"),
    ],
)
def test_what_does_not_go_together(changes, measure, message):
    with pytest.raises(UserError, match=message):
        check_parameter_server_recipe(NAMED.replace(changes), 4, measure_noise=measure)


def test_the_weights_distance_is_not_recorded_there():
    with pytest.raises(UserError, match="measure_distance with a parameter server: is not recorded there"):
        check_parameter_server_recipe(NAMED, 4, measure_distance=True)


def test_more_gradients_than_samples():
    with pytest.raises(RecipeError, match="40 workers for a global_batch of 32"):
        build_work_queue(NAMED, 40)


def test_roles_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("BIGBATCH_ROLE", "worker:0")
    monkeypatch.setenv("BIGBATCH_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("BIGBATCH_TOKEN", "token")
    monkeypatch.setattr("bigbatch.train.parameter_server.worker.run_worker", lambda task, recipe, role, **_: (task.name, role.rank))
    assert bigbatch.fit("digits/mlp", NAMED) == ("digits/mlp", 0)
    monkeypatch.setenv("BIGBATCH_ROLE", "server:0")
    monkeypatch.setattr("bigbatch.train.parameter_server.server.run_server", lambda task, recipe, role, options: options)
    assert bigbatch.fit("digits/mlp", NAMED, evaluate_every=2.0) == Options(evaluate_every=2.0)
    with pytest.raises(UserError, match=r"comm.kind = 'all_reduce' in a run with a parameter server"):
        bigbatch.fit("digits/mlp")


def test_alone_it_is_an_ordinary_run_but_does_not_go_on_with_pieces_missing(tmp_path):
    short = NAMED.replace({"budget.updates": 3})
    assert bigbatch.fit("digits/mlp", short, out=tmp_path, **QUIET).updates == 3
    state = saved(tmp_path)
    state["progress"][4]["ledger"] = {"applied": [[0, 32], [64, 96]]}
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="samples were applied out of order, by a parameter server"):
        bigbatch.fit("digits/mlp", short, out=tmp_path, resume=True, **QUIET)


def test_json_of_the_outcome_is_what_workers_return(tmp_path):
    results = []
    with reserved_ports(1) as ports:
        facts = ((f"tcp://127.0.0.1:{ports[0]}",), "token", 1)
        with threads(lambda: results.append(run_worker(Digits(), NAMED, ProcessRole(False, 0, *facts)))):
            results.append(run_server(Digits(), NAMED, ProcessRole(True, 0, *facts), Options(**QUIET)))
    assert len({json.dumps(json.loads(result.to_json())) for result in results}) == 1
