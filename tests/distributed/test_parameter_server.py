"""A parameter server and its workers as processes of `bigbatch train --workers`: they die, and the run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.cli.command import bigbatch
from tests.distributed.jobs import Job, descendants, left_behind
from tests.limits import LIMIT_S
from tests.structured_tasks import RECIPE as STRUCTURED
from tests.structured_tasks import Dicts
from torch.utils.data import default_collate

from bigbatch import fit

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


class DictPoints(Dicts):
    """With a collate of its own, as ragged samples need it."""

    def collate(self, samples):
        batch = default_collate(samples)
        return {"a": batch["a"], "b": batch["b"]}, {"labels": batch["labels"]}


def test_batches_of_any_structure(tmp_path):
    recipe = STRUCTURED.replace({"task": f"{__name__}:DictPoints"})
    fit(DictPoints(), recipe, out=tmp_path / "alone", quiet=True, tensorboard=False)
    served = recipe.replace({"comm.kind": "parameter_server", "batch.micro_batch": 3})
    (tmp_path / "recipe.toml").write_text(served.to_toml())
    command = ["train", recipe.task, "--recipe", "recipe.toml", "--out", "served", "--workers", "2", "--quiet"]
    bigbatch(*command, cwd=tmp_path, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    one, other = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("alone", "served"))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_servers_and_workers_are_killed_and_the_run_ends_well(tmp_path):
    settings = {"mode": "asynchronous", "staleness_bound": 4, "damping": "inverse", "servers": 2}
    sets = [part for name, value in settings.items() for part in ("--set", f"comm.{name}={value}")]
    job = Job(tmp_path / "run", *LONG, *sets, "--save-every", "0.3", "--workers", "3", cwd=tmp_path)
    for at, role in ((100, "server:0"), (400, "worker:1"), (500, "server:1"), (900, "server:0")):
        job.wait_for_updates(at)
        kill(job, role)
    code, said = job.end()
    assert code == 0, said
    assert said.count("the server resumes after update") == 3
    lost = [line for line in said.splitlines() if line.startswith("lost: ")]
    killed = "was killed by SIGKILL (from outside, or out of memory: see the kernel's log); restarting it"
    assert [line.partition(" was killed")[0] for line in lost] == [
        "lost: parameter server 0 of 2",
        "lost: worker 1 of 3",
        "lost: parameter server 1 of 2",
        "lost: parameter server 0 of 2",
    ]
    assert all(killed in line for line in lost)
    assert "test accuracy" not in said  # that is for stdout
    assert_whole(job)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_worker_that_ends_in_an_error_of_the_task_is_counted(tmp_path):
    """The others do its part, and the exit code tells."""
    (tmp_path / "task.py").write_text(FAILING)
    bigbatch("plan", "digits/mlp", "--global-batch", "32", "--out", "recipe.toml", cwd=tmp_path)
    command = ["task:Failing", "--recipe", "recipe.toml", "--quiet", "--comm", "parameter_server", "--out", "run", "--workers"]
    found = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = bigbatch("train", *command, "2", cwd=tmp_path, expect=5, **found)
    assert done.stderr.splitlines() == [
        "worker 1: unexpected RuntimeError: no such thing; this is a bug in bigbatch or in the task: --debug shows the traceback",
        "lost: worker 1 of 2 ended with exit code 1; continuing with 1",
        "lost: done, but 1 of 2 workers exited early (worker 1); the others did the rest",
    ]
    assert "test accuracy" in done.stdout
    end = json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[-1])
    assert end["applied"] == [[0, end["samples"]]]
    command[command.index("run")] = "range"
    done = bigbatch("train", *command, "1:2", cwd=tmp_path, expect=0, **found)  # asked for no more than one
    assert "done, but" not in done.stderr


FAILING = """
import os
from bigbatch.tasks.digits_mlp import DigitsMLP

class Failing(DigitsMLP):
    calls = 0

    def losses(self, outputs, targets):
        self.calls += 1
        if self.calls > 20 and os.environ.get("BIGBATCH_ROLE") == "worker:1":
            raise RuntimeError("no such thing")
        return super().losses(outputs, targets)
"""


@pytest.mark.slow
def test_stopped_servers_and_workers_are_named_and_started_again(tmp_path):
    job = Job(tmp_path / "run", *LONG, "--save-every", "0.3", "--workers", "2", cwd=tmp_path, BIGBATCH_TIMEOUT_S="5")
    for at, role in ((100, "worker:1"), (400, "server:0")):
        job.wait_for_updates(at)
        stopped = processes(job)[role]
        os.kill(stopped, signal.SIGSTOP)
        job.wait_for(lambda role=role, stopped=stopped: processes(job).get(role, stopped) != stopped)
    code, said = job.end()
    assert code == 0, said
    assert "lost: worker 1 of 2 was stopped (SIGSTOP, or a debugger) for 5 s (BIGBATCH_TIMEOUT_S); restarting it" in said
    assert "lost: the parameter server was stopped (SIGSTOP, or a debugger) for 5 s (BIGBATCH_TIMEOUT_S); restarting it" in said
    assert_whole(job)


def test_a_server_without_a_folder_ends_the_job(tmp_path):
    command = [sys.executable, "-m", "bigbatch", "train", *LONG, "--quiet", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    job = SimpleNamespace(process=process)
    kill(job, "server:0")
    said = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 4
    reason = "from outside, or out of memory: see the kernel's log"
    assert said == f"lost: the parameter server was killed by SIGKILL ({reason}); nothing was saved: no --out was given\n"
