"""A parameter server and its workers as processes of `bigbatch train --workers`: they die, and the run goes on."""

import os
import signal
import time
from pathlib import Path

import torch
from tests.distributed.jobs import Job, descendants, left_behind
from tests.limits import LIMIT_S

UPDATES, SAMPLES = 1622, 51_880
LONG = ["digits/mlp", "--set", "budget.epochs=40", "--set", "batch.micro_batch=8", "--comm", "parameter_server"]


def processes(job):
    """Process numbers by role."""
    found = {}
    for pid, _, command in descendants(job.process.pid):
        try:
            names = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        except OSError:
            continue
        if "train" in command and "BIGBATCH_ROLE" in names:
            found[names["BIGBATCH_ROLE"]] = pid
    return found


def kill(job, role, wait_s=LIMIT_S):
    end = time.monotonic() + wait_s
    while role not in (now := processes(job)):
        assert time.monotonic() < end, f"no {role}"
        time.sleep(0.05)
    os.kill(now[role], signal.SIGKILL)


def assert_whole(job):
    lines = job.lines()
    assert [line["update"] for line in lines if line["kind"] == "update"] == list(range(1, UPDATES + 1))
    end = lines[-1]
    assert (end["kind"], end["samples"], end["applied"]) == ("end", SAMPLES, [[0, SAMPLES]])
    assert end["test_score"] > 0.95
    assert max(map(int, end["staleness"])) <= end["staleness_bound"]
    assert left_behind(job.out) == []


def test_servers_and_workers_are_killed_and_the_run_ends_well(tmp_path):
    settings = {"mode": "asynchronous", "staleness_bound": 4, "damping": "inverse", "servers": 2}
    sets = [part for name, value in settings.items() for part in ("--set", f"comm.{name}={value}")]
    job = Job(tmp_path / "run", *LONG, *sets, "--save-every", "0.3", "--workers", "3", cwd=tmp_path)
    for at, role in ((100, "server:0"), (400, "worker:1"), (500, "server:1"), (900, "server:0")):
        job.wait_for_updates(at)
        kill(job, role)
    code, said = job.end()
    assert code == 0, said
    assert said.count("the server goes on after update") == 3
    assert "test accuracy" not in said  # that is for stdout
    assert_whole(job)


def test_a_polite_stop_a_resume_with_fewer_and_no_orphans(tmp_path):
    job = Job(tmp_path / "run", *LONG, "--workers", "2", cwd=tmp_path)
    job.wait_for_updates(100)
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 130, said
    assert said.count("interrupted: stopped after update") == 1
    done = [line["update"] for line in job.lines() if line["kind"] == "update"]
    assert torch.load(job.out / "last.pt", weights_only=True)["progress"][0][1] == done[-1]
    assert left_behind(job.out) == []

    job = Job(tmp_path / "run", *LONG, "--workers", "1:2", "--resume", cwd=tmp_path)
    job.wait_for_updates(done[-1] + 100)
    kill(job, "worker:0")
    job.wait_for_updates(done[-1] + 300)  # the one that is left does both parts
    assert "worker:0" not in processes(job)
    job.process.kill()
    job.end()
    assert left_behind(job.out) == []
