"""Signals to a run of one process and of several: it saves, says so once, and ends; a second Ctrl-C ends it at once."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from tests.cli.command import bigbatch
from tests.distributed.jobs import ForkedJob, Job, left_behind
from tests.limits import LIMIT_S

LONG = ["digits/mlp", "--set", "budget.epochs=400", "--set", "batch.micro_batch=8", "--save-every", "0.5"]
WAYS = {
    "alone": [],
    "workers": ["--workers", "2"],
    "range": ["--workers", "1:2"],
    "server": ["--workers", "2", "--comm", "parameter_server"],
}


def last_saved(out):
    return torch.load(out / "last.pt", weights_only=True)["progress"][0][1]


def assert_saved_all(job):
    """The checkpoint is that of the last update in the record."""
    assert last_saved(job.out) == [line["update"] for line in job.lines() if line["kind"] == "update"][-1]
    assert left_behind(job.out) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_warning_saves_and_ends(tmp_path, way, number):
    job = ForkedJob(tmp_path / "run", *LONG, *WAYS[way], cwd=tmp_path)
    job.wait_for_updates(20)
    job.process.send_signal(number)
    code, said = job.end()
    assert code == 130, said
    assert re.findall("interrupted.*", said) == [line for line in said.splitlines() if "stopped after update" in line], said
    assert said.count("stopped after update") == 1
    assert "death signal" not in said
    assert_saved_all(job)


def test_nohup_is_left_alone(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
    try:
        job = Job(tmp_path / "run", *LONG, "--workers", "2", cwd=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    job.wait_for_updates(20)
    job.process.send_signal(signal.SIGHUP)
    job.wait_for_updates(sum(line["kind"] == "update" for line in job.lines()) + 100)
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 130, said


@pytest.mark.parametrize("way", ["alone", "workers"])
def test_a_closed_terminal(tmp_path, way):
    """Standard error is a terminal that goes away: the run saves all the same."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "bigbatch", "train", *LONG, *WAYS[way], "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os; fcntl.ioctl(0, {termios.TIOCSCTTY}, 0); os.execv({command[0]!r}, {command!r})"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        os.close(theirs)
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK)
        record, end = tmp_path / "run" / "record.jsonl", time.monotonic() + LIMIT_S
        while not record.exists() or record.read_text().count('"update"') < 50:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        os.close(ours)
        assert process.wait(LIMIT_S) == 130
    finally:
        process.kill()
        process.wait()
    updates = [line["update"] for line in map(json.loads, record.read_text().splitlines()) if line["kind"] == "update"]
    assert last_saved(tmp_path / "run") == updates[-1]
    assert left_behind(tmp_path / "run") == []


@pytest.mark.parametrize("way", WAYS)
def test_the_second_ctrl_c_ends_at_once_and_says_what_is_saved(tmp_path, way):
    """The first is not heard: the run is held up in a callback, or its first worker or server is stopped."""
    if way == "alone":
        (tmp_path / "held.py").write_text(HELD)
        job = ForkedJob(tmp_path / "run", *LONG, cwd=tmp_path, program=[str(tmp_path / "held.py")])
    else:
        job = ForkedJob(tmp_path / "run", *LONG, *WAYS[way], cwd=tmp_path)
    job.wait_for_updates(20)
    if way != "alone":
        os.kill(job.workers()[0], signal.SIGSTOP)
    end = time.monotonic() + LIMIT_S
    while job.process.poll() is None:  # within a second two are one, so it is pressed until it is heard
        assert time.monotonic() < end
        job.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    code, said = job.end()
    assert code == 130, said
    (line,) = re.findall("interrupted.*", said)
    assert line.startswith(f"interrupted: stopped at once; saved up to update {last_saved(job.out)} in {job.out}; go on with ")
    assert line.endswith("--resume")
    assert "Traceback" not in said
    assert left_behind(job.out) == []


HELD = """
import runpy, time
import bigbatch.train.run as run

class Held(run.AgreedFlags):
    def poll(self, **asked):
        found = super().poll(**asked)
        while asked["interrupted"]:
            time.sleep(0.05)
        return found

run.AgreedFlags = Held
runpy.run_module("bigbatch", run_name="__main__")
"""


def test_a_signal_before_training_is_said(tmp_path):
    """Held up where nothing is trained yet."""
    os.mkfifo(tmp_path / "recipe.toml")
    command = [sys.executable, "-m", "bigbatch", "train", "digits/mlp", "--recipe", "recipe.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    descriptor = os.open(tmp_path / "recipe.toml", os.O_WRONLY)  # returns once it is being read, which is after main has begun
    try:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=LIMIT_S)[1]
    finally:
        os.close(descriptor)
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said == "interrupted (SIGTERM): nothing more was saved\n"


@pytest.fixture
def slurm(tmp_path):
    """An environment with a scontrol that writes down what it is asked."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest ! -e {tmp_path}/broken || {{ echo no such job >&2; exit 1; }}\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "77"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "workers", "server"])
def test_a_requeued_job_goes_on_by_itself(tmp_path, slurm, way):
    command = [*LONG, *WAYS[way], "--requeue"]
    job = ForkedJob(tmp_path / "run", *command, cwd=tmp_path, **slurm)
    job.wait_for_updates(20)
    job.process.send_signal(signal.SIGUSR1)
    code, said = job.end()
    assert code == 130, said
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "requeue: Slurm job 77 is queued again" in said
    assert_saved_all(job)

    saved = last_saved(job.out)
    (tmp_path / "broken").touch()
    again = {**slurm, "SLURM_RESTART_COUNT": "1"}
    job = ForkedJob(tmp_path / "run", *command, cwd=tmp_path, **again)  # the same command, without --resume
    job.wait_for_updates(saved + 20)
    job.process.send_signal(signal.SIGUSR1)
    code, said = job.end()
    assert code == 130, said
    assert f"resumes after update {saved:,}" in said
    assert "requeue: Slurm did not queue job 77 again (no such job)" in said


def test_only_the_warning_requeues(tmp_path, slurm):
    job = ForkedJob(tmp_path / "run", *LONG, "--requeue", cwd=tmp_path, **slurm)
    job.wait_for_updates(20)
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 130
    assert not (tmp_path / "asked").exists()


def test_requeue_is_refused_where_it_cannot_work(tmp_path, slurm):
    short = ["train", "digits/mlp", "--requeue"]
    assert "--requeue without --out" in bigbatch(*short, cwd=tmp_path, expect=2, **slurm).stderr
    out = ["--out", "run"]
    assert "SLURM_JOB_ID is not set" in bigbatch(*short, *out, cwd=tmp_path, expect=2).stderr
    nowhere = {**slurm, "PATH": str(tmp_path)}
    for workers in ([], ["--workers", "2"]):
        said = bigbatch(*short, *out, *workers, cwd=tmp_path, expect=2, **nowhere).stderr
        assert said == "error: --requeue: needs scontrol, which is not on PATH here; leave --requeue out, or mend PATH\n"
