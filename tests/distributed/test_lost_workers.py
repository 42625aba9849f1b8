"""A worker is lost: the launcher says which, of what, up to where the run is saved and what to type; a range of workers goes on."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.cli.command import bigbatch, forked
from tests.distributed.jobs import ForkedJob, Job, left_behind

LONG = ["digits/mlp", "--set", "budget.epochs=400", "--set", "batch.micro_batch=8", "--save-every", "0.5", "--quiet"]
MANY = ["--set", "budget.epochs=25", "--set", "batch.micro_batch=8", "--save-every", "0.5", "--quiet"]


def last_saved(out):
    return torch.load(out / "last.pt", weights_only=True)["progress"][0][1]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "(from outside, or out of memory: see the kernel's log)"),
        (signal.SIGSEGV, "(a crash in native code: torch, a driver or an extension)"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_line_names_the_worker_and_the_signal(tmp_path, rank, number, reason):
    job = ForkedJob(tmp_path / "a run", *LONG, "--workers", "2", cwd=tmp_path)
    job.wait_for_updates(50)
    os.kill(job.workers()[rank], number)
    code, said = job.end()
    assert code == 4
    command = ["python", "-m", "bigbatch", "train", *LONG, "--workers", "2", "--out", str(job.out), "--resume"]
    assert said == (
        f"lost: worker {rank} of 2 was killed by {number.name} {reason}; "
        f"saved up to update {last_saved(job.out):,} in {job.out}; go on with {shlex.join(command)}\n"
    )
    assert left_behind(job.out) == []


def test_what_was_said_can_be_typed(tmp_path):
    job = Job(tmp_path / "a run", "digits/mlp", *MANY, "--workers", "2", cwd=tmp_path)
    job.wait_for_updates(50)
    for worker in job.workers():
        os.kill(worker, signal.SIGKILL)
    code, said = job.end()
    assert code == 4
    assert len(said.splitlines()) == 1, said
    words = shlex.split(re.search("go on with (.*)", said)[1])
    assert bigbatch(*words[3:], cwd=tmp_path).stderr == ""
    done = [line["update"] for line in job.lines() if line["kind"] == "update"]
    assert done == list(range(1, 1015))


def test_nothing_was_saved_without_a_folder(tmp_path):
    arguments = [sys.executable, "-m", "bigbatch", "train", *TASK, "--workers", "2"]
    done = ended(tmp_path, "os._exit(77)", arguments)
    assert (done.returncode, done.stderr) == (4, "lost: worker 1 of 2 ended with exit code 77; nothing was saved: no --out was given\n")


def test_an_abort_is_named(tmp_path):
    arguments = [sys.executable, "-m", "bigbatch", "train", *TASK, "--workers", "2", "--out", "run"]
    done = ended(tmp_path, "os.kill(os.getpid(), signal.SIGABRT)", arguments)
    assert done.returncode == 4
    assert done.stderr.startswith("lost: worker 1 of 2 was killed by SIGABRT (a library aborted: see its output); saved up to update")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_of_a_task_is_said_by_its_worker_alone(tmp_path):
    arguments = [sys.executable, "-m", "bigbatch", "train", *TASK, "--workers", "2", "--out", "run"]
    done = ended(tmp_path, "raise RuntimeError('no such thing')", arguments)
    assert done.returncode == 1
    assert done.stderr == (
        "worker 1: unexpected RuntimeError: no such thing; this is a bug in bigbatch or in the task: --debug shows the traceback\n"
    )


@pytest.fixture
def control_group():
    """A control group of memory, below that of this process, with 1 GB; where this process may make one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        for root, limit, members in (("memory", "memory.limit_in_bytes", "tasks"), ("", "memory.max", "cgroup.procs")):
            folder = Path("/sys/fs/cgroup", root, path.lstrip("/"), f"bigbatch-{os.getpid()}")
            if "memory" in kinds.split(",") or (not kinds and not root):
                try:
                    folder.mkdir()
                except OSError:
                    continue
                try:
                    (folder / limit).write_text(str(1_000_000_000))
                    yield folder / members
                    return
                except OSError:
                    continue
                finally:
                    folder.rmdir()
    pytest.skip("no control group of memory can be made here")


def test_a_kill_for_want_of_memory_is_told_from_others(tmp_path, control_group):
    train = [sys.executable, "-m", "bigbatch", "train", *TASK, "--workers", "2", "--out", "run"]
    arguments = ["sh", "-c", f'echo $$ > {control_group}; exec "$@"', "sh", *train]
    done = ended(tmp_path, "self.held = [os.urandom(1 << 20) * 64 for _ in range(100)]", arguments)
    assert done.returncode == 4
    said = "lost: worker 1 of 2 was killed by SIGKILL (out of memory: the kernel's count of out-of-memory kills rose); saved up to update"
    assert done.stderr.startswith(said), done.stderr


TASK = ["task:Ending", "--recipe", "recipe.toml", "--quiet"]


def ended(folder, how, arguments):
    """A run whose worker 1 ends in some way after a while."""
    (folder / "task.py").write_text(ENDING.format(how=how))
    bigbatch("plan", "digits/mlp", "--global-batch", "32", "--out", "recipe.toml", cwd=folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    if arguments[0] == sys.executable:
        return forked(arguments[1:], folder, environment)
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=560, check=False)


ENDING = """
import os, signal
from bigbatch.tasks.digits_mlp import DigitsMLP

class Ending(DigitsMLP):
    calls = 0

    def losses(self, outputs, targets):
        self.calls += 1
        if self.calls > 50 and os.environ.get("RANK") == "1":
            {how}
        return super().losses(outputs, targets)
"""


def test_a_silent_worker_is_named_after_the_time_that_was_set(tmp_path):
    job = ForkedJob(tmp_path / "run", *LONG, "--workers", "2", cwd=tmp_path, BIGBATCH_TIMEOUT_S="3")
    job.wait_for_updates(50)
    os.kill(job.workers()[1], signal.SIGSTOP)
    code, said = job.end()
    assert code == 4
    assert said.startswith("lost: worker 1 of 2 was stopped (SIGSTOP, or a debugger) for 3 s (BIGBATCH_TIMEOUT_S); saved up to update ")
    assert len(said.splitlines()) == 1, said
    assert left_behind(job.out) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_range_goes_on_with_those_left_and_never_with_fewer_than_the_least(tmp_path, number):
    job = ForkedJob(tmp_path / "run", "digits/mlp", *MANY, "--workers", "2:3", cwd=tmp_path, BIGBATCH_TIMEOUT_S="10")
    for deaths in (1, 2):
        saved = last_saved(job.out) if deaths > 1 else 0
        job.wait_for_updates(saved + 200)
        workers = job.workers()
        assert len(workers) == 4 - deaths
        os.kill(workers[1], number)
        job.wait_for(lambda workers=workers: workers[1] not in job.workers() and len(job.workers()) == 2)
    code, said = job.end()
    assert code == 0, said
    how = "was killed by SIGKILL" if number == signal.SIGKILL else "was stopped"
    lost = [line for line in said.splitlines() if "lost: " in line]
    assert len(lost) == 2, said
    assert lost[0].startswith(f"lost: worker 1 of 3 {how}")
    assert lost[1].startswith(f"lost: worker 1 of 2 {how}")
    assert all(line.endswith("; continuing with 2 from the last checkpoint") for line in lost)
    assert "--resume" not in said
    assert [line["update"] for line in job.lines() if line["kind"] == "update"] == list(range(1, 1015))
    assert left_behind(job.out) == []


def test_a_group_that_dies_again_and_again_ends(tmp_path):
    arguments = [sys.executable, "-m", "bigbatch", "train", *TASK, "--workers", "2:3", "--out", "run", "--save-every", "1000"]
    done = ended(tmp_path, "os._exit(77)", arguments)
    assert done.returncode == 4
    *going_on, last = done.stderr.splitlines()
    assert len([line for line in going_on if line.startswith("lost: ")]) == 10  # the first had a checkpoint, of its start
    assert "worker 1 of 2 ended with exit code 77, for the 10th time without a checkpoint in between; saved up to update 0 in run" in last
