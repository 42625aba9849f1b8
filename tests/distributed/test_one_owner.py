"""Starts at the same moment in one folder: exactly one runs, and what it leaves is its own; the same between hosts and in srun."""

import json
import os
import time
import tomllib
from contextlib import contextmanager

import pytest
import torch
from tests.cli.command import bigbatch
from tests.forks import Program
from tests.limits import LIMIT_S

from bigbatch import Recipe
from bigbatch.core.storage.folder_lock import OWNER, Owner
from bigbatch.train.state.checkpoint import read_checkpoint

TRAIN = ["train", "digits/mlp", "--quiet"]


ENDLESS = ["--set", "budget.epochs=1000000"]


@contextmanager
def started_at_once(folder, commands, **environment):
    processes = [
        Program(["-m", "bigbatch", *command], environment={**os.environ, "OMP_NUM_THREADS": "1", **environment}, folder=folder)
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def the_one_that_runs(processes, ready=lambda: True):
    """Waits until the others have ended, each refused, and the one is ready; then that one is stopped."""
    end = time.monotonic() + LIMIT_S
    while len(running := [p for p in processes if p.poll() is None]) > 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    (one,) = running
    for process in processes:
        if process is not one:
            (line,) = process.communicate()[1].splitlines()
            assert process.returncode == 2, line
            assert line.startswith("error: output folder run: is in use by process ")
    while not ready():
        assert time.monotonic() < end
        assert one.poll() is None
        time.sleep(0.1)
    one.terminate()
    said = one.communicate(timeout=LIMIT_S)[1]
    assert one.returncode == 130, said
    return processes.index(one)


@pytest.mark.parametrize("number", [2, 3, 10])
def test_of_simultaneous_starts_exactly_one_runs(tmp_path, number):
    """Each with a rate of its own: recipe, record and checkpoint are of one of them."""
    rates, record = [round(0.01 * (1 + i), 2) for i in range(number)], tmp_path / "run" / "record.jsonl"
    with started_at_once(tmp_path, [[*TRAIN, *ENDLESS, "--out", "run", "--set", f"optimizer.lr={rate}"] for rate in rates]) as processes:
        lr = rates[the_one_that_runs(processes, lambda: record.exists() and '"update"' in record.read_text())]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["optimizer"]["lr"] == lr
    assert [line["recipe"]["optimizer"]["lr"] for line in lines if line["kind"] == "start"] == [lr]
    updates = [line["update"] for line in lines if line["kind"] == "update"]
    assert updates == list(range(1, len(updates) + 1))
    checkpoint = read_checkpoint(tmp_path / "run" / "last.pt", torch.device("cpu"))
    assert Recipe.from_toml(checkpoint["recipe"]).optimizer.lr == lr
    assert not (tmp_path / "run" / OWNER).exists()


def test_workers_of_one_run_and_a_study(tmp_path):
    """Two workers hold the folder as one run."""
    commands = [[*TRAIN, "--workers", "2"], ["noise", "digits/mlp", "--quiet"]]
    with started_at_once(tmp_path, [[*command, *ENDLESS, "--out", "run"] for command in commands]) as processes:
        the_one_that_runs(processes)


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        ["scale", "digits/mlp", "--to", "256", "--quiet"],
        ["critical", "digits/mlp", "--batches", "32,64,128", "--target", "0.8", "--quiet"],
        ["noise", "digits/mlp", "--quiet"],
    ],
    ids=lambda command: command[0],
)
def test_a_folder_of_another_host_is_refused_until_forced(tmp_path, command):
    """The other host is simulated by what it would have left."""
    (tmp_path / "run").mkdir()
    left = Owner.this_process()._replace(host="node7")
    (tmp_path / "run" / OWNER).write_text(json.dumps(left._asdict()))
    done = bigbatch(*command, "--out", "run", cwd=tmp_path, expect=2)
    assert f"error: output folder run: held by process {left.pid} on node7, since {left.since}, and not given back" in done.stderr
    assert "--force" in done.stderr
    if command == TRAIN:
        bigbatch(*command, "--out", "run", "--force", "--set", "budget.epochs=1", cwd=tmp_path)
        assert not (tmp_path / "run" / OWNER).exists()


def test_tasks_of_srun_without_torchrun(tmp_path):
    """The first says what to type, the others are silent."""
    environments = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2"} for rank in range(2)]
    command = [*TRAIN, "--set", "budget.epochs=1", "--out", "run"]
    said = [bigbatch(*command, cwd=tmp_path, expect=2, **environment).stderr for environment in environments]
    assert "error: SLURM_PROCID=0 of 2 processes started by srun" in said[0]
    assert "srun --ntasks-per-node=1 torchrun --nnodes=" in said[0]
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "text"), [("RANK", "x"), ("WORLD_SIZE", "abc"), ("BIGBATCH_TIMEOUT_S", "abc"), ("BIGBATCH_DEBUG", "yes")])
def test_variables_that_cant_be(tmp_path, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    done = bigbatch(*TRAIN, cwd=tmp_path, expect=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {name}={text}: must be ")
