"""The same update, however many workers and forward passes it is cut into (design.md: losses are exact)."""

import json
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks

from bigbatch import Recipe, fit
from bigbatch.report import write_report
from bigbatch.train.state.checkpoint import read_checkpoint

SCRIPT = Path(__file__).with_name("train.py")
MLP = {"batch.global_batch": 128, "budget.samples": 19 * 128 + 50}
SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9}
RUNS = {  # task, changes, forward passes of one worker
    "sgd": ("digits/mlp", {**MLP, **SGD}, 128),
    "lars": ("digits/mlp", {**MLP, "optimizer.name": "lars", "optimizer.lr": 10.0, "optimizer.weight_decay": 1e-4}, 128),
    "lamb": ("digits/mlp", {**MLP, "optimizer.name": "lamb", "optimizer.lr": 0.01}, 128),
    "adamp": ("digits/mlp", {**MLP, "optimizer.name": "adamp", "optimizer.lr": 1e-3}, 128),
    "muon": ("digits/mlp", {**MLP, "optimizer.name": "muon", "optimizer.lr": 0.05, "optimizer.adam_lr": 0.02}, 128),
    "soap_muon": ("digits/mlp", {**MLP, "optimizer.name": "soap_muon", "optimizer.lr": 0.05, "optimizer.adam_lr": 0.02}, 128),
    "clipped": ("digits/mlp", {**MLP, **SGD, "optimizer.clip_norm": 0.5}, 128),
    "noisy": ("digits/mlp", {**MLP, **SGD, "batch.noise_batch": 16}, 128),
    "sharded": ("digits/mlp", {**MLP, **SGD, "comm.kind": "fully_shard"}, 128),
    "muon, sharded": (
        "digits/mlp",
        {**MLP, "optimizer.name": "muon", "optimizer.lr": 0.05, "optimizer.adam_lr": 0.02, "comm.kind": "fully_shard"},
        128,
    ),
    "soap_muon, sharded": (
        "digits/mlp",
        {**MLP, "optimizer.name": "soap_muon", "optimizer.lr": 0.05, "optimizer.adam_lr": 0.02, "comm.kind": "fully_shard"},
        128,
    ),
    "everything sent": ("digits/mlp", {**MLP, **SGD, "comm.compression": {"kind": "top_k", "share": 1.0}}, 128),
    "ghost": ("fashion_mnist/resnet8", {"batch.global_batch": 64, "batch.ghost_batch": 16, "budget.samples": 5 * 64 + 10, **SGD}, 64),
}


def recipe_of(name, micro_batch):
    task, changes, _ = RUNS[name]
    unscheduled = {"precision": "float64", "budget.epochs": None, "schedule.warmup.kind": "none", "schedule.decay.kind": "constant"}
    return Recipe.named(task).replace({**unscheduled, **changes, "batch.micro_batch": micro_batch})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Every run by one worker in one pass: final state of the model, and the lines of its record."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (task, _, size) in RUNS.items():
        fit(task, recipe_of(name, size), out=folder / name, quiet=True, tensorboard=False)
    return {name: outcome(folder / name) for name in RUNS}


def outcome(folder):
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return read_checkpoint(folder / "last.pt", torch.device("cpu"))["model"], [line for line in lines if line["kind"] != "start"]


def assert_same(folder, expected):
    (state, lines), (whole_state, whole_lines) = outcome(folder), expected
    for key, value in whole_state.items():  # running statistics of batch norm too
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-10)
    updates, whole_updates = ([line for line in some if line["kind"] == "update"] for some in (lines, whole_lines))
    assert [line["samples"] for line in updates] == [line["samples"] for line in whole_updates]
    assert [line["loss"] for line in updates] == pytest.approx([line["loss"] for line in whole_updates], rel=1e-9)
    test, whole_test = (next(line for line in some if line.get("split") == "test") for some in (lines, whole_lines))
    assert test["num_samples"] == whole_test["num_samples"]
    assert test["score"] == pytest.approx(whole_test["score"], abs=1.5 / test["num_samples"])  # one near a tie may go either way


@pytest.mark.parametrize("name", RUNS)
def test_one_worker_in_several_passes(tmp_path, alone, name):
    size = 16
    fit(RUNS[name][0], recipe_of(name, size), out=tmp_path / "run", quiet=True, tensorboard=False)
    assert_same(tmp_path / "run", alone[name])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_several_workers(tmp_path, alone, world):
    """2 workers x 4 passes, 4 x 2, and a ragged 3; the last update is short, and leaves workers without a whole group."""
    runs = [{"task": RUNS[name][0], "recipe": recipe_of(name, 16).to_toml(), "out": str(tmp_path / name)} for name in RUNS]
    (tmp_path / "jobs.json").write_text(json.dumps(runs))
    run_ranks(SCRIPT, world, tmp_path, str(tmp_path / "jobs.json"))
    for name in RUNS:
        assert_same(tmp_path / name, alone[name])


RULED = {  # rules of the batch, over updates of 64 in pieces of 16: the same groups of samples on one, two and four workers
    "norm test": {"batch.rule": {"kind": "norm_test", "theta": 0.6, "every_updates": 10}},
    "inner product test": {"batch.rule": {"kind": "inner_product_test", "theta": 0.4, "nu": 0.5, "every_updates": 10}},
    "norm test, sharded": {"batch.rule": {"kind": "norm_test", "theta": 0.6, "every_updates": 10}, "comm.kind": "fully_shard"},
    "increase": {"batch.rule": {"kind": "increase_batch"}, "schedule.decay": {"kind": "step", "milestones": [1, 2], "factor": 0.5}},
    "adascale": {"batch.rule": {"kind": "adascale", "base_batch": 32}},
}
OWN = {  # each worker measures its own gradient: no two numbers of workers measure alike, but all workers decide alike
    "local": {**RULED["norm test"], "comm": {"kind": "local_sgd", "period": 2}},
    "top-k": {**RULED["norm test"], "comm.compression": {"kind": "top_k", "share": 0.1}},
}


def ruled(name):
    changes = {
        "precision": "float64",
        "budget.epochs": 3,
        "batch.global_batch": 64,
        "batch.micro_batch": 16,
        "schedule.warmup.kind": "none",
    }
    return Recipe.named("digits/mlp").replace({**changes, **{**RULED, **OWN}[name]})


@pytest.mark.slow
def test_rules_decide_alike_on_any_number_of_workers(tmp_path):
    for name in RULED:
        fit("digits/mlp", ruled(name), out=tmp_path / "1" / name, quiet=True, tensorboard=False)
    for world in (2, 4):
        runs = [
            {"task": "digits/mlp", "recipe": ruled(name).to_toml(), "out": str(tmp_path / str(world) / name)} for name in (*RULED, *OWN)
        ]
        (tmp_path / "jobs.json").write_text(json.dumps(runs))
        (tmp_path / f"ranks-{world}").mkdir()
        run_ranks(SCRIPT, world, tmp_path / f"ranks-{world}", str(tmp_path / "jobs.json"))
        for name in RULED:
            (state, lines), (alone_state, alone_lines) = outcome(tmp_path / str(world) / name), outcome(tmp_path / "1" / name)
            for key, value in alone_state.items():
                torch.testing.assert_close(state[key], value, rtol=0, atol=1e-10)
            sizes, alone_sizes = ([line["global_batch"] for line in some if line["kind"] == "update"] for some in (lines, alone_lines))
            assert sizes == alone_sizes, name
            decisions = [line for line in alone_lines if line["kind"] == "batch" and line["before"] != line["after"]]
            assert decisions or name == "adascale", f"{name}: nothing was decided"
        for name in OWN:
            _, lines = outcome(tmp_path / str(world) / name)
            assert any(line["kind"] == "batch" and line["before"] != line["after"] for line in lines), f"{name}: nothing was decided"


def gossip(method, **changes):
    comm = {"comm": {"kind": "gossip", "method": method, "topology": "complete"}}
    return recipe_of("sgd", 16).replace({"optimizer.nesterov": False, "budget.samples": 20 * 128, **comm, **changes})


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_gossip_with_everyone_is_all_reduce_and_resumes_bit_for_bit(tmp_path):
    """On the complete graph with equal shares, DmSGD's weights are those of one worker after every update."""
    ghost = {"batch.global_batch": 64, "batch.ghost_batch": 16, "budget.samples": 5 * 64, "precision": "float32"}
    ring = {"kind": "gossip", "method": "d_psgd", "topology": "ring"}
    normalised = recipe_of("ghost", 16).replace({**ghost, "comm": ring})
    fit("digits/mlp", gossip("dmsgd"), out=tmp_path / "alone", quiet=True, tensorboard=False)
    whole = {"options": {"measure_test": False}}
    jobs = [
        {"task": "digits/mlp", "recipe": gossip("dmsgd").to_toml(), "out": str(tmp_path / "dmsgd")},
        {
            "task": "digits/mlp",
            "recipe": gossip("decentlam", **{"comm.topology": "ring"}).to_toml(),
            "out": str(tmp_path / "decentlam"),
        },
        {**whole, "task": "fashion_mnist/resnet8", "recipe": normalised.to_toml(), "out": str(tmp_path / "normalised")},
    ]
    stopped = [{**job, "out": job["out"] + "-resumed", "options": {"stop_after": 3}} for job in jobs[1:]]
    resumed = [{**job, "options": {"resume": True, "measure_test": False}} for job in stopped]
    (tmp_path / "jobs.json").write_text(json.dumps([*jobs, *stopped]))
    run_ranks(SCRIPT, 4, tmp_path, str(tmp_path / "jobs.json"))
    (tmp_path / "store").unlink(missing_ok=True)
    (tmp_path / "jobs.json").write_text(json.dumps(resumed))
    run_ranks(SCRIPT, 4, tmp_path, str(tmp_path / "jobs.json"))
    assert_same(tmp_path / "dmsgd", outcome(tmp_path / "alone"))
    for name in ("decentlam", "normalised"):
        once, again = outcome(tmp_path / name), outcome(tmp_path / f"{name}-resumed")
        for key, value in once[0].items():
            assert torch.equal(value, again[0][key]), key
        distances = [line["distance"] for line in once[1] if line.get("split") == "validation"]
        assert distances[-1] > 0
        assert distances == [line["distance"] for line in again[1] if line.get("split") == "validation"]
        sent = [line["sent_bytes"] for line in once[1] if line.get("split") == "validation"]
        assert sent == [line["sent_bytes"] for line in again[1] if line.get("split") == "validation"]
        page = write_report(tmp_path / f"{name}-resumed").read_text()
        assert 'aria-label="Distance of workers from their mean"' in page
        assert "MB an update" in page


@pytest.mark.bit_for_bit
def test_local_steps_resume_with_each_worker_s_whole_optimizer_state(tmp_path):
    """SoapMuon's bases have another shape than their weights: all workers used to go on with the first one's."""
    local = {"comm": {"kind": "local_sgd", "period": 2}, "budget.samples": 10 * 128}
    whole = {"task": "digits/mlp", "recipe": recipe_of("soap_muon", 64).replace(local).to_toml(), "out": str(tmp_path / "whole")}
    stopped = {**whole, "out": str(tmp_path / "stopped"), "options": {"stop_after": 5}}
    for jobs in ([whole, stopped], [{**stopped, "options": {"resume": True}}]):
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        (tmp_path / "store").unlink(missing_ok=True)
        run_ranks(SCRIPT, 2, tmp_path, str(tmp_path / "jobs.json"))
    once, again = outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")
    for key, value in once[0].items():
        assert torch.equal(value, again[0][key]), key
