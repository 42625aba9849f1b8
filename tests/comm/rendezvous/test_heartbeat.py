"""A worker that is lost is noticed while the others wait for a GPU: simulated by ranks whose main threads hear nothing."""

import os
import signal
import time
from pathlib import Path

import pytest
from tests.distributed.ranks import run_ranks
from tests.forks import Program, python_path
from tests.limits import LIMIT_S

SCRIPT = Path(__file__).with_name("heartbeat_ranks.py")


@pytest.mark.parametrize("what", ["done", "all refuse"])
def test_ranks_that_are_done_leave_one_after_the_other(tmp_path, what):
    assert all("left" in said for said in run_ranks(SCRIPT, 3, tmp_path, what))


@pytest.mark.parametrize("what", ["dies", "raises", "refuses", "silent"])
def test_a_lost_worker_is_noticed_by_all(tmp_path, what):
    """Within a while that is short against the time-out of 500 s, also on a busy machine; where a worker is silent, after 20 s."""
    shared = {
        **os.environ,
        "WORLD_SIZE": "3",
        "STORE": str(tmp_path / "store"),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": python_path(os.environ),
    }
    ranks = []
    try:
        for rank in range(3):
            environment, log = {**shared, "RANK": str(rank)}, tmp_path / f"{rank}.log"
            ranks.append(Program([SCRIPT, what], environment=environment, log=log, warnings="ignore"))
        logs = [tmp_path / f"{rank}.log" for rank in range(3)]
        end = time.monotonic() + LIMIT_S
        while not all(log.exists() and "together" in log.read_text() for log in logs) and time.monotonic() < end:
            time.sleep(0.05)
        begin = time.monotonic()
        codes = [ranks[rank].wait(LIMIT_S) for rank in (0, 2)]
        assert time.monotonic() - begin < 200
        assert codes == [4, 4]
        assert "lost: worker 0 of 3 lost worker 1; to go on from the last checkpoint, continue with --resume" in logs[0].read_text()
        assert "worker 2: lost: worker 2 of 3 lost worker 1;" in logs[2].read_text()
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGCONT)
            rank.kill()
            rank.wait()
