"""Concurrent adversarial learning over several workers: whoever makes the examples, it is the same run."""

import json
import signal
from pathlib import Path

import pytest
import torch
from tests.distributed.jobs import ForkedJob
from tests.distributed.ranks import run_ranks
from tests.train.adversarial.test_training import RESNET, assert_same, weights

from bigbatch import Recipe

SCRIPT = Path(__file__).with_name("train.py")
MAKERS = RESNET.replace({"precision": "float32", "adversarial.makers": "ranks", "batch.micro_batch": 32})
SHORT_END = {"budget.samples": 3 * 64 + 10}  # the last update is of one group: a worker has nothing to do in it
SPLIT = {
    "every worker its own": RESNET.replace({"batch.micro_batch": 16, **SHORT_END}),
    "annealed": RESNET.replace({"batch.micro_batch": 16, "adversarial.full_until": 0.2, "adversarial.off_at": 0.6, "adversarial.tau": 2}),
    "lars, augmented": RESNET.replace(
        {"batch.micro_batch": 32, "optimizer": {"name": "lars", "lr": 5.0}, "augmentation": {"padding": 2, "flip": True}}
    ),
}


def started(folder, world, jobs):
    """Runs of the trainer, one after the other, on so many ranks."""
    folder.mkdir()
    task = {"task": "fashion_mnist/resnet8"}
    whole = [{**task, **job, "options": {"measure_test": False, **job.get("options", {})}} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(whole))
    run_ranks(SCRIPT, world, folder, str(folder / "jobs.json"))


def job(out, recipe, **options):
    return {"recipe": recipe.to_toml(), "out": str(out), "options": options}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By one worker, which makes its own."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {"makers": MAKERS, **SPLIT}
    started(folder / "ranks", 1, [job(folder / name, recipe) for name, recipe in runs.items()])
    return folder


def test_a_maker_changes_not_a_bit_and_runs_move_between_one_and_two_ranks(tmp_path, alone):
    two = [job(tmp_path / "two", MAKERS), *(job(tmp_path / name, MAKERS, stop_after=3) for name in ("again", "one after two"))]
    started(tmp_path / "ranks-2", 2, two)
    moved = [job(tmp_path / "one after two", MAKERS, resume=True), job(tmp_path / "two after one", MAKERS, stop_after=2)]
    started(tmp_path / "ranks-1", 1, moved)
    resumed = [job(tmp_path / name, MAKERS, resume=True) for name in ("again", "two after one")]
    started(tmp_path / "ranks-2-again", 2, resumed)
    for name in ("two", "again", "one after two", "two after one"):
        assert_same(tmp_path / name, alone / "makers")


def test_two_trainers_share_an_update(tmp_path, alone):
    """Running statistics of both streams too."""
    stopped = job(tmp_path / "moved", SPLIT["annealed"], stop_after=1)
    started(tmp_path / "ranks", 2, [*(job(tmp_path / name, recipe) for name, recipe in SPLIT.items()), stopped])
    started(tmp_path / "ranks-1", 1, [job(tmp_path / "moved", SPLIT["annealed"], resume=True)])  # what two held, one holds
    for name in SPLIT:
        assert_same(tmp_path / name, alone / name, atol=1e-10)
    assert_same(tmp_path / "moved", alone / "annealed", atol=1e-10)


def test_two_trainers_and_two_makers(tmp_path):
    recipes = {
        "muon": RESNET.replace({"optimizer": {"name": "muon", "lr": 0.02, "adam_lr": 0.01}, **SHORT_END}),
        "annealed": SPLIT["annealed"],
    }
    started(tmp_path / "ranks-1", 1, [job(tmp_path / f"{name}, alone", recipe) for name, recipe in recipes.items()])
    jobs = [job(tmp_path / name, recipe.replace({"adversarial.makers": "ranks"})) for name, recipe in recipes.items()]
    started(tmp_path / "ranks-4", 4, jobs)
    for name in recipes:
        assert_same(tmp_path / name, tmp_path / f"{name}, alone", atol=1e-10)


def test_a_run_that_diverges_lets_its_makers_go(tmp_path):
    settings = ["adversarial.eps=0.1", "adversarial.makers=ranks", "optimizer.lr=1e30"]
    sets = [part for setting in settings for part in ("--set", setting)]
    code, said = ForkedJob(tmp_path / "run", "digits/mlp", "--workers", "2", "--quiet", *sets, cwd=tmp_path).end()
    assert code == 3
    assert said.count("diverged:") == 1
    assert "lost" not in said


def test_a_run_that_is_stopped_from_outside_goes_on(tmp_path):
    settings = {"adversarial.eps": 0.1, "adversarial.makers": "ranks", "budget.epochs": 15, "batch.micro_batch": 32}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = ["digits/mlp", "--workers", "2", "--quiet", *sets]
    running = ForkedJob(tmp_path / "run", *command, cwd=tmp_path)
    running.wait_for_updates(20)
    running.process.send_signal(signal.SIGTERM)
    code, said = running.end()
    assert (code, "lost" in said) == (130, False), said
    assert weights(tmp_path / "run")
    code, said = ForkedJob(tmp_path / "run", *command, "--resume", cwd=tmp_path).end()
    assert code == 0, said
    held = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["workers"][0]["held"]
    assert held["ahead"] == []
    assert Recipe.load(tmp_path / "run" / "recipe.toml").adversarial.makers == "ranks"
