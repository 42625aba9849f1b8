"""Starts that can't work end soon, on every rank, with one readable error; nothing hangs."""

import os
import socket
import time
from contextlib import closing

import pytest
from tests.cli.command import bigbatch
from tests.comm.rendezvous.test_redis_store import redis_server
from tests.forks import Program
from tests.limits import LIMIT_S

from bigbatch.comm.launch.launcher import Workers
from bigbatch.core.checks import UserError

SHORT = ["digits/mlp", "--set", "budget.epochs=1", "--quiet"]


def start(folder, *ranks, world=None, **environment):
    """Start one process a rank, each with its own command line, as torchrun would; (exit code, what it said) of each."""
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        port = s.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(world or len(ranks)), "BIGBATCH_TIMEOUT_S": "120", **environment}
    processes = [
        Program(["-m", "bigbatch", "train", *command], environment={**os.environ, **shared, "RANK": str(rank)}, folder=folder)
        for rank, command in ranks
    ]
    end = time.monotonic() + LIMIT_S
    try:
        said = [p.communicate(timeout=max(end - time.monotonic(), 0.1))[1] for p in processes]  # the watchdog: a hang fails the test
    finally:
        for p in processes:
            p.kill()
            p.wait()
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]


def errors(said):
    return [line for line in said.splitlines() if "error:" in line]


def test_more_workers_than_samples(tmp_path):
    ends = start(tmp_path, *[(rank, [*SHORT, "--set", "batch.global_batch=1"]) for rank in range(2)])
    assert [code for code, _ in ends] == [2, 2]
    assert errors(ends[0][1]) == [
        "error: 2 workers for a global_batch of 1: some would have no samples; start at most 1 workers or raise the batch"
    ]
    assert errors(ends[1][1]) == []  # the first speaks for all


def test_more_workers_than_normalisation_groups(tmp_path):
    command = ["fashion_mnist/resnet8", "--quiet", "--set", "batch.ghost_batch=128"]
    ends = start(tmp_path, *[(rank, command) for rank in range(2)])
    assert [code for code, _ in ends] == [2, 2]
    assert "2 workers for 1 normalisation group (ghost_batch = 128, global_batch = 128)" in ends[0][1]


def test_another_recipe_on_one_rank(tmp_path):
    ends = start(tmp_path, (0, SHORT), (1, [*SHORT, "--set", "optimizer.lr=0.7"]))
    assert [code for code, _ in ends] == [2, 2]
    (line,) = errors(ends[0][1])
    assert line.startswith("error: workers 0 and 1 differ in recipe ('lr = 0.1' and 'lr = 0.7'): must be the same on all")


def test_data_that_one_rank_lacks(tmp_path):
    (tmp_path / "empty").mkdir()
    command = ["fashion_mnist/mlp", "--quiet", "--set", "budget.epochs=1"]
    ends = start(tmp_path, (0, command), (1, [*command, "--data", str(tmp_path / "empty")]))
    assert [code for code, _ in ends] == [2, 2]
    assert "worker 1 of 2: " in errors(ends[0][1])[0]
    assert errors(ends[1][1])[0].startswith("worker 1: error: ")


def test_a_folder_that_holds_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"")
    ends = start(tmp_path, *[(rank, [*SHORT, "--out", "run"]) for rank in range(2)])
    assert [code for code, _ in ends] == [2, 2]
    assert len(errors(ends[0][1] + ends[1][1])) == 1
    assert "already holds a run" in ends[0][1]


def test_a_rank_that_never_comes(tmp_path):
    ((code, said),) = start(tmp_path, (0, SHORT), world=2, BIGBATCH_TIMEOUT_S="3")
    assert code == 2
    assert len(errors(said)) == 1
    assert "worker 0 of 2: could not connect to the others at 127.0.0.1" in said


def test_a_master_that_cant_be_reached(tmp_path):
    ((code, said),) = start(tmp_path, (1, SHORT), world=2, BIGBATCH_TIMEOUT_S="3")
    assert code == 2
    assert "worker 1 of 2: could not connect to the others at 127.0.0.1" in said


def test_workers_that_meet_at_redis(tmp_path):
    with redis_server(tmp_path) as server:
        settings = {"BIGBATCH_STORE": server.url, "BIGBATCH_JOB": "digits"}
        ends = start(tmp_path, *[(rank, [*SHORT, "--out", "run"]) for rank in range(2)], **settings)
        assert [code for code, _ in ends] == [0, 0], ends
        wrong = {**settings, "BIGBATCH_STORE": server.url.replace(":p", ":x")}
        ends = start(tmp_path, *[(rank, SHORT) for rank in range(2)], **wrong)
        assert [code for code, _ in ends] == [2, 2]
        assert "p@ss" not in ends[0][1]
        ((code, said),) = start(tmp_path, (0, SHORT), world=2, BIGBATCH_STORE=server.url)
        assert code == 2
        assert "a store needs a job name" in said


@pytest.mark.parametrize("text", ["0", "x", "4:2", "2:x", "-1", ""])
def test_numbers_of_workers_that_are_none(text):
    with pytest.raises(UserError, match="must be a number such as 4, or a range such as 2:4"):
        Workers.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--comm", "gossip", "--topology", "random_match", "--workers", "3"], "random_match of 3 workers: must be an even number"),
        (["--comm", "gossip", "--topology", "rng", "--workers", "2"], "comm.topology = 'rng': input should be 'ring', 'torus'"),
        (["--topology", "ring", "--workers", "2"], "unknown field 'comm.topology'"),
    ],
)
def test_gossip_that_cannot_be(tmp_path, options, message):
    done = bigbatch("train", "digits/mlp", *options, cwd=tmp_path, expect=2)
    assert message in done.stderr
    assert done.stderr.count("error:") == 1, "said once, not by each worker"
