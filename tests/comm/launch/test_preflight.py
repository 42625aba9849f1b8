import signal
import subprocess
import sys

import pytest

from bigbatch.comm.launch import preflight
from bigbatch.comm.launch.preflight import WORKER, WorkerTimings, measure_workers, run_workers
from bigbatch.core.checks import UserError

WAIT = "exec cat"  # ends when standard input does, as a worker does: so it must stay open


@pytest.fixture
def started(monkeypatch):
    """Every process that the test starts."""
    ranks, popen = [], subprocess.Popen

    def record(*args, **options):
        ranks.append(popen(*args, **options))
        return ranks[-1]

    monkeypatch.setattr(preflight.subprocess, "Popen", record)
    return ranks


def shell(*scripts):
    return [["sh", "-c", script] for script in scripts]


def test_two_real_workers(started):
    found = measure_workers(2)
    assert (found.workers, found.backend, found.threads) == (2, "gloo", 1)
    assert list(found.seconds) == [4096, 16384, 65536, 262144, 1048576, 4194304, 16777216]
    for times in found.seconds.values():
        assert 3 <= len(times) <= 25
        assert all(t > 0 for t in times)
    assert found.latency_s > 0
    assert found.alone_gflops > 0
    assert len(found.together_gflops) == 2
    assert [r.returncode for r in started] == [0, 0]


def test_speedup_hand_worked():
    found = WorkerTimings(2, "gloo", 1, alone_gflops=10.0, together_gflops=(9.0, 6.0), latency_s=1e-4, all_reduce=())
    assert found.speedup == pytest.approx(1.5)


def test_a_real_failure_says_rank_and_reason(monkeypatch, started):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(UserError, match=r"worker of rank [01] of 2 failed with exit code 1: .*nosuch0.*; fix that error") as error:
        measure_workers(2)
    assert "\n" not in str(error.value)
    assert all(r.returncode is not None for r in started)


def test_outputs_are_those_of_the_ranks(tmp_path):
    assert run_workers(shell("echo a; echo b", "echo c"), tmp_path, timeout_s=30) == ["a\nb\n", "c\n"]


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ((WAIT, "kill -9 $$"), r"worker of rank 1 of 2 was killed by signal 9: no output; fix"),
        (("exit 0", WAIT, "echo no >&2; echo 'bad luck' >&2; exit 3"), r"worker of rank 2 of 3 failed with exit code 3: bad luck; fix"),
    ],
    ids=["killed", "failed"],
)
def test_a_worker_that_dies_is_named_and_ends_the_others(tmp_path, started, scripts, message):
    with pytest.raises(UserError, match=message):
        run_workers(shell(*scripts), tmp_path, timeout_s=30)
    assert -signal.SIGKILL in [r.returncode for r in started]
    assert all(r.returncode is not None for r in started)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (f"echo started; {WAIT}", r"worker of rank 1 of 3: timed out after 2 s, last stage: started; fix"),
        (WAIT, r"worker of rank 1 of 3: timed out after 2 s, it did not start; fix"),
    ],
)
def test_of_workers_that_hang_the_one_that_got_least_far_is_named(tmp_path, started, second, message):
    first = f"echo started; echo joined the process group; {WAIT}"
    with pytest.raises(UserError, match=message):
        run_workers(shell(first, second, "exit 0"), tmp_path, timeout_s=2)
    assert [r.returncode for r in started] == [-signal.SIGKILL, -signal.SIGKILL, 0]


def test_a_worker_ends_when_its_parent_is_gone(tmp_path):
    """Rank 0 of 2 would wait five minutes for rank 1; but nobody holds the other end of its standard input any more."""
    program = [sys.executable, *WORKER, "0", "2", "1", "300", str(tmp_path / "store"), "gloo"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=preflight._environment()) as worker:
        try:
            assert worker.stdout.readline() == b"started\n"
            assert worker.poll() is None
            worker.stdin.close()
            assert worker.wait(timeout=60) == 1
        finally:
            worker.kill()


def test_refuses():
    with pytest.raises(UserError, match="workers = 1: must be at least 2"):
        measure_workers(1)
    with pytest.raises(UserError, match="threads = 0: must be a finite number above zero"):
        measure_workers(2, threads=0)
