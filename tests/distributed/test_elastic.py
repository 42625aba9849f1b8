"""Workers die: the run goes on, or can be gone on with, and no sample is counted twice."""

import os
import signal

import pytest
import torch
from tests.distributed.jobs import ForkedJob, Job, left_behind

LONG = ["digits/mlp", "--set", "budget.epochs=20", "--set", "batch.micro_batch=8", "--save-every", "0.5"]
UPDATES, SAMPLES = 811, 25_940


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The end of an undisturbed run of one worker."""
    folder = tmp_path_factory.mktemp("straight")
    job = ForkedJob(folder / "run", *LONG, cwd=folder)
    assert job.end()[0] == 0
    return job


def weights(job):
    return torch.load(job.out / "last.pt", weights_only=True)["model"]


def assert_whole(job, straight):
    """Every update is there once, and the end is that of the undisturbed run."""
    updates = [line for line in job.lines() if line["kind"] == "update"]
    assert [line["update"] for line in updates] == list(range(1, UPDATES + 1))
    assert updates[-1]["samples"] == SAMPLES
    score, expected = (next(line["score"] for line in j.lines() if line.get("split") == "test") for j in (job, straight))
    assert score == pytest.approx(expected, abs=0.02)
    for key, value in weights(straight).items():
        torch.testing.assert_close(weights(job)[key], value, rtol=0, atol=0.1)
    assert left_behind(job.out) == []


@pytest.mark.parametrize("victims", [[1], [0], [0, 2]])
def test_the_group_forms_anew(tmp_path, straight, victims):
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "2:3", cwd=tmp_path)
    job.wait_for_updates(200)
    workers = job.workers()
    for rank in victims:
        os.kill(workers[rank], signal.SIGKILL)
    code, said = job.end()
    assert code == 0, said
    assert said.count("with 2 workers") == 1
    assert_whole(job, straight)


def test_gossip_goes_on_with_the_workers_that_are_left(tmp_path):
    """A ring of three becomes one of two, whose weights are those of the new graph; all start from the last average."""
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "2:3", "--comm", "gossip", "--topology", "ring", cwd=tmp_path)
    job.wait_for_updates(200)
    os.kill(job.workers()[1], signal.SIGKILL)
    code, said = job.end()
    assert code == 0, said
    assert "with 2 workers" in said
    assert [line["update"] for line in job.lines() if line["kind"] == "update"] == list(range(1, UPDATES + 1))
    assert next(line["score"] for line in job.lines() if line.get("split") == "test") > 0.9
    assert left_behind(job.out) == []


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_all_are_killed_and_the_run_is_resumed_bit_for_bit(tmp_path, straight):
    whole = ForkedJob(tmp_path / "whole", *LONG, "--workers", "3", cwd=tmp_path)
    assert whole.end()[0] == 0
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "3", cwd=tmp_path)
    job.wait_for_updates(300)
    for worker in job.workers():
        os.kill(worker, signal.SIGKILL)
    assert job.end()[0] == 4
    assert left_behind(job.out) == []
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "3", "--resume", cwd=tmp_path)
    code, said = job.end()
    assert code == 0, said
    assert_whole(job, straight)
    for key, value in weights(whole).items():
        assert torch.equal(weights(job)[key], value), key


def test_a_polite_stop_saves_and_says_so(tmp_path):
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "2", cwd=tmp_path)
    job.wait_for_updates(100)
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 130, said
    assert "interrupted: stopped after update" in said
    assert said.count("interrupted") == 1
    done = [line["update"] for line in job.lines() if line["kind"] == "update"]
    assert torch.load(job.out / "last.pt", weights_only=True)["progress"][0][1] == done[-1]
    assert left_behind(job.out) == []


def test_workers_do_not_outlive_their_launcher(tmp_path):
    endless = [word.replace("epochs=20", "epochs=4000") for word in LONG]
    job = Job(tmp_path / "run", *endless, "--workers", "2", cwd=tmp_path)
    job.wait_for_updates(100)
    job.process.kill()
    job.end()
    assert left_behind(job.out) == []
