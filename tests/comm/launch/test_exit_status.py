"""How processes end, in words."""

import os
import signal
import subprocess
import sys

import pytest

from bigbatch.comm.launch import exit_status
from bigbatch.comm.launch.exit_status import describe_exit, is_stopped, name_workers, oom_kills


def test_the_reason_of_a_kill_is_the_kernels_count(monkeypatch):
    monkeypatch.setattr(exit_status, "oom_kills", lambda: 3)
    assert describe_exit(-9, 2) == "was killed by SIGKILL (out of memory: the kernel's count of out-of-memory kills rose)"
    for before in (3, None):
        assert describe_exit(-9, before) == "was killed by SIGKILL (from outside, or out of memory: see the kernel's log)"
    monkeypatch.setattr(exit_status, "oom_kills", lambda: None)
    assert "from outside" in describe_exit(-9, 2)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGBUS, "was killed by SIGBUS (unreadable memory"),
        (-signal.SIGABRT, "was killed by SIGABRT (a library aborted"),
        (-signal.SIGUSR2, "was killed by SIGUSR2"),
        (-50, "was killed by signal 50"),
        (7, "ended with exit code 7"),
    ],
)
def test_signals_by_name(code, words):
    assert describe_exit(code, None).startswith(words)


def test_counts_of_both_versions_of_control_groups(tmp_path):
    member, root = tmp_path / "cgroup", tmp_path / "mounted"
    v2, v1 = root / "a" / "b", root / "memory" / "c"
    for folder, name, text in (
        (v2, "memory.events", "low 0\noom 2\noom_kill 5\noom_group_kill 0\n"),
        (v1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
    member.write_text("0::/a/b\n")
    assert oom_kills(member, root) == 5
    member.write_text("5:memory:/c\n4:cpu,cpuacct:/\n0::/\n")
    assert oom_kills(member, root) == 7
    member.write_text("5:memory:/not/seen/from/inside\n")  # a container's own group is mounted as the root
    assert oom_kills(member, root) is None
    (root / "memory" / "memory.oom_control").write_text("oom_kill 9\n")
    assert oom_kills(member, root) == 9
    member.write_text("0::/elsewhere\n")
    assert oom_kills(member, root) is None
    assert oom_kills(tmp_path / "none", root) is None


def test_a_stopped_process_is_seen():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert not is_stopped(process.pid)


def test_workers_by_number():
    assert name_workers([3], of=4) == "worker 3 of 4"
    assert name_workers([2, 0, 1]) == "workers 0, 1 and 2"
