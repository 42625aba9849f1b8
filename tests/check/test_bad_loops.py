"""Loops that can't be checked: one line says why, within bounded time, and no process is left."""

import os
import time

import pytest
import torch
from tests.check import loops

from bigbatch.check import check
from bigbatch.check.processes import is_lost_peer
from bigbatch.core.checks import UserError


def does_nothing(probe):
    pass


def makes_no_update(probe):
    for _ in range(probe.accumulation):
        loops.mlp()(torch.randn(probe.micro_batch, 6)).sum().backward()


def ignores_the_probe(probe):
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 6)).sum().backward()
    optimizer.step()


def needs_a_gpu(probe):
    loops.mlp().to("cuda")


def raises_an_error(probe):
    if probe.rank == 1:
        raise KeyError("no such column")
    loops.right_samples(probe)


def dies(probe):
    print("the last words")
    if probe.rank == 1:
        os._exit(7)
    loops.right_samples(probe)


def is_killed(probe):
    if probe.rank == 1:
        os.kill(os.getpid(), 11)
    loops.right_samples(probe)


def without_a_length(probe):
    probe.data(iter([]))


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (does_nothing, "does_nothing: made no update: no optimizer of torch.optim made a step"),
        (makes_no_update, "makes_no_update: made no update"),
        (ignores_the_probe, "ignores_the_probe: did not read probe.micro_batch or probe.accumulation"),
        (
            needs_a_gpu,
            r"needs_a_gpu at 1 worker x 1 micro-batch: worker 0 raised .*test_bad_loops.py, line \d+.*use the device of probe.device",
        ),
        (raises_an_error, r"at 2 workers x 1 micro-batch: worker 1 raised KeyError: 'no such column' \(test_bad_loops.py, line \d+\)"),
        (dies, "at 2 workers x 1 micro-batch: worker 1 ended with exit code 7, after printing 'the last words'"),
        (is_killed, "at 2 workers x 1 micro-batch: worker 1 was killed by SIGSEGV"),
        (without_a_length, r"probe.data\(list_iterator\): must have a length above 0 and numbered items"),
    ],
)
def test_one_line_says_why(loop, message):
    with pytest.raises(UserError, match=message):
        check(loop, workers=[1, 2])


def pids_of(folder):
    return [int(path.name) for path in folder.iterdir()]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_loop_that_hangs_is_ended_and_said_where(tmp_path):
    def waits(probe):
        (tmp_path / str(os.getpid())).touch()
        if os.fork() == 0:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(300)
        time.sleep(300)

    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"waits at 1 worker x 1 micro-batch: worker 0 was not done after 3 s, at test_bad_loops.py, line \d+"
    ):
        check(waits, time_limit_s=3)
    assert time.monotonic() - began < 60
    assert len(pids_of(tmp_path)) == 2
    end = time.monotonic() + 20
    while any(is_running(pid) for pid in pids_of(tmp_path)) and time.monotonic() < end:
        time.sleep(0.1)  # until the grandchild is reaped by who adopted it
    assert not [pid for pid in pids_of(tmp_path) if is_running(pid) and b"python" in _name(pid)]


def _name(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


@pytest.mark.parametrize("words", ["Connection closed by peer", "Connection reset by peer", "Write error: Broken pipe"])
def test_all_words_for_a_peer_that_is_gone_are_known(words):
    assert is_lost_peer(f"RuntimeError: [pair.cc:537] Read error [127.0.0.1]:10946: {words}. This is typically caused by")


def test_workers_that_wait_for_one_another():
    def one_more(probe):
        loops.right_samples(probe)
        if probe.rank == 1:
            torch.distributed.barrier()

    with pytest.raises(UserError, match="worker 1 raised RuntimeError.*; worker 0 was done: do all workers make as many updates"):
        check(one_more, workers=[1, 2])


def test_a_worker_that_is_late():
    def late(probe):
        loops.right_samples(probe)
        if probe.rank == 1:
            time.sleep(300)

    with pytest.raises(UserError, match=r"worker 1 was not done after 6 s, at test_bad_loops.py, line \d+; worker 0 was done"):
        check(late, workers=[1, 2], time_limit_s=6)
