"""A job of `bigbatch train --workers` under observation: its processes, found in /proc, and what its record says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.forks import Program
from tests.limits import LIMIT_S

SESSIONS = {}
"""Numbers of the sessions of forked jobs, by their folder: processes that are forked have their server's command line, not their own."""


class Job:
    """Start one; `command` follows `bigbatch train`, or another program's `train`."""

    def __init__(self, out, *command, cwd, program=("-m", "bigbatch"), **environment):
        self.out = Path(out)
        arguments = [*program, "train", *command, "--out", str(out)]
        self.process = self.started(arguments, cwd, {**os.environ, "OMP_NUM_THREADS": "1", **environment})

    def started(self, arguments, folder, environment):
        return subprocess.Popen([sys.executable, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)

    def lines(self):
        path = self.out / "record.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait_for_updates(self, number, timeout_s=LIMIT_S):
        self.wait_for(lambda: sum(line["kind"] == "update" for line in self.lines()) >= number, timeout_s)

    def wait_for(self, condition, timeout_s=LIMIT_S):
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s} s"
            assert self.process.poll() is None, f"the job ended: {self.process.stderr.read()}"
            time.sleep(0.05)

    def workers(self):
        """Process numbers of the workers, which the launcher forks in the order of their ranks."""
        return sorted(pid for pid, parent, _ in descendants(self.process.pid) if parent == self.process.pid)

    def end(self, timeout_s=LIMIT_S):
        """Exit code and what was said."""
        try:
            _, said = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, said


class ForkedJob(Job):
    """One that doesn't import torch again, see forks.py."""

    def started(self, arguments, folder, environment):
        process = Program(arguments, environment=environment, folder=folder)
        SESSIONS.setdefault(self.out, set()).add(process.pid)
        return process


def processes():
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(folder.name), parent, (folder / "cmdline").read_text().rstrip("\0").split("\0")
            except OSError:
                continue  # ended meanwhile


def descendants(pid):
    children = {}
    for process in processes():
        children.setdefault(process[1], []).append(process)
    found, todo = [], [pid]
    while todo:
        mine = children.get(todo.pop(), [])
        found += mine
        todo += [child for child, _, _ in mine]
    return found


def session(pid):
    """Number of a process's session; None if it has ended."""
    try:
        state, _, _, number, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(number)


def left_behind(out, wait_s=100):
    """Processes of a job that are still there after a while."""
    end, sessions = time.monotonic() + wait_s, SESSIONS.get(Path(out), set())
    while left := [process for process in processes() if str(out) in process[2] or (sessions and session(process[0]) in sessions)]:
        if time.monotonic() > end:
            return left
        time.sleep(0.1)
    return []
