"""A folder has one owner: threads, processes and hosts; the lock of a killed owner is free."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from tests.limits import LIMIT_S

from bigbatch.core.checks import OutputError
from bigbatch.core.storage.folder_lock import OWNER, Owner, is_held, owned, read_owner

HOLDS = """
import sys
from pathlib import Path
from bigbatch.core.storage.folder_lock import owned
with owned(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def leave_record(folder, **changes):
    owner = Owner.this_process()._replace(**changes)
    (folder / OWNER).write_text(json.dumps(owner._asdict()))
    return owner


def test_held_by_another_process_with_its_name(tmp_path, holder):
    since = read_owner(tmp_path).since
    with pytest.raises(OutputError) as refused, owned(tmp_path):
        pass
    assert str(refused.value) == (
        f"output folder {tmp_path}: is in use by process {holder.pid} on {socket.gethostname()}, since {since}; "
        "wait for its end, or choose another --out"
    )
    holder.communicate("", timeout=LIMIT_S)
    assert not (tmp_path / OWNER).exists()
    with owned(tmp_path):
        assert read_owner(tmp_path).pid == os.getpid()


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(LIMIT_S)
    assert read_owner(tmp_path).pid == holder.pid
    with owned(tmp_path):
        assert read_owner(tmp_path).pid == os.getpid()


def test_force_takes_nothing_that_is_locked(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("BIGBATCH_FORCE", "1")
    with pytest.raises(OutputError, match=f"in use by process {holder.pid}"), owned(tmp_path):
        pass


def test_threads_are_owners_of_their_own(tmp_path):
    refused = []

    def enter():
        try:
            with owned(tmp_path):
                pass
        except OutputError as error:
            refused.append(str(error))

    with owned(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    (text,) = refused
    assert f"in use by process {os.getpid()}" in text
    enter()
    assert len(refused) == 1


def test_what_another_host_has_not_given_back_is_refused(tmp_path, monkeypatch):
    leave_record(tmp_path, host="node7", pid=4242, since="2026-01-02 03:04:05 UTC")
    with pytest.raises(OutputError) as refused, owned(tmp_path):
        pass
    assert str(refused.value) == (
        f"output folder {tmp_path}: held by process 4242 on node7, since 2026-01-02 03:04:05 UTC, and not given back; whether that still "
        f"runs can't be seen from {socket.gethostname()}: if it has ended, take the folder over with --force, else choose another --out"
    )
    assert read_owner(tmp_path).host == "node7", "still there"
    monkeypatch.setenv("BIGBATCH_FORCE", "1")
    with owned(tmp_path):
        assert read_owner(tmp_path).host == socket.gethostname()


def test_a_job_that_its_scheduler_starts_on_another_host_goes_on(tmp_path, monkeypatch):
    leave_record(tmp_path, host="node7", jobs=("SLURM_JOB_ID=17",))
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    with pytest.raises(OutputError, match="node7"), owned(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with owned(tmp_path):
        assert read_owner(tmp_path).jobs == ("SLURM_JOB_ID=17",)


def test_an_owner_of_the_same_job_is_waited_for(tmp_path, holder, monkeypatch):
    leave_record(tmp_path, pid=holder.pid, jobs=("BIGBATCH_JOB=a",))
    monkeypatch.setenv("BIGBATCH_JOB", "a")
    with pytest.raises(OutputError, match=f"in use by process {holder.pid}"), owned(tmp_path, wait_s=0.2):
        pass
    ends = threading.Timer(0.2, holder.kill)
    ends.start()
    with owned(tmp_path, wait_s=LIMIT_S):
        assert read_owner(tmp_path).pid == os.getpid()
    ends.join()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"host": 1}', b"\xff\xfe", b"[" * 100_000, b'{"host":"a","pid":"x","since":"","jobs":[]}']
)
def test_a_record_that_cant_be_read_is_warned_about(tmp_path, content):
    (tmp_path / OWNER).write_bytes(content)
    with pytest.warns(UserWarning, match=r"owner\.json: is damaged.*; who held the folder before is not known"), owned(tmp_path):
        assert read_owner(tmp_path).pid == os.getpid()


def test_a_folder_that_cant_be_locked(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match="can't be locked"), owned(tmp_path):
        pass


def test_is_held_while_its_process_lives(tmp_path, holder):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert is_held(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    holder.send_signal(signal.SIGKILL)
    holder.wait(LIMIT_S)
    assert (tmp_path / OWNER).exists()
    assert not is_held(tmp_path)


def test_is_not_held_by_a_later_process_of_the_same_number(tmp_path):
    with owned(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    leave_record(tmp_path)  # this process's number, and the lock is free
    assert not is_held(tmp_path)


def test_another_host_holds_until_it_gives_back(tmp_path):
    leave_record(tmp_path, host="elsewhere", pid=1)
    assert is_held(tmp_path)
    (tmp_path / OWNER).unlink()
    assert not is_held(tmp_path)


def test_where_the_owner_is_damaged_the_lock_says_whether_it_is_held(tmp_path, recwarn):
    with owned(tmp_path):
        (tmp_path / OWNER).write_text("{")
        assert is_held(tmp_path)
        (tmp_path / OWNER).write_text('{"host": 1, "pid": 1, "since": "", "jobs": []}')
        assert is_held(tmp_path)
    (tmp_path / OWNER).write_text("{")
    assert not is_held(tmp_path)
    assert not recwarn.list
