"""Start a parameter server and its workers on this machine, and keep them going.

`launch` ends all workers when one of them dies; here each has its own fate. A server that dies is started again and goes on from the run's
last checkpoint. A worker that dies is missed by the server within a second, and started again where a fixed number was asked for; one that
ends in an error of its own is not: the run then ends with exit code 5. Each death is said in one line.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence

from bigbatch.comm.launch.exit_status import describe_exit, is_stopped, name_workers, oom_kills
from bigbatch.comm.launch.launcher import (
    GRACE_S,
    LOST_WORKERS,
    REPORT_GRACE_S,
    REPORTED,
    SIGNAL_DEBOUNCE_S,
    STOPPED,
    THREADS,
    Workers,
    reserved_ports,
    threads_per_worker,
)
from bigbatch.comm.parameter_server.process_role import NUM_WORKERS, ROLE, SERVERS, TOKEN
from bigbatch.core.environment import JOB, LAUNCHER, timeout_s
from bigbatch.core.saved import Saved
from bigbatch.core.signals import caught

MOST_RESTARTS = 100
"""Of servers, and of workers, over the whole job."""
LOOK_S = 0.05
ENDS = (0, *REPORTED)
"""Exit codes of a server that ended by itself; with any other it is started again."""
DONE_WITH_FEWER = 5
"""Exit code of a job that is done, though with fewer workers than asked for."""


def supervise(arguments: Sequence[str], workers: Workers, saved: Saved, *, num_servers: int = 1) -> int:
    """Run `python -m bigbatch ARGUMENTS` as servers and workers on this machine and wait for the end.

    Args:
        arguments: Of the command, without `--workers`.
        workers: A number: that many are kept going. A range: the larger number is started, and the run goes on with those that are left,
            as long as there are as many as the smaller.
        saved: Where the run saves, from which a server that died can go on, and the user's own command.
        num_servers: Servers over which the parameters are spread.

    Returns:
        Exit code of the job: the first server's; `DONE_WITH_FEWER` where a fixed number of workers was asked for and some were lost.
    """
    with reserved_ports(num_servers) as ports:
        os.environ |= {
            JOB: os.environ.get(JOB, uuid.uuid4().hex),
            LAUNCHER: str(os.getpid()),
            SERVERS: ",".join(f"127.0.0.1:{port}" for port in ports),
            TOKEN: os.environ.get(TOKEN, secrets.token_hex(32)),
            NUM_WORKERS: str(workers.most),
            THREADS: threads_per_worker(workers.most),
        }
        return _Job(arguments, workers, saved, num_servers).run()


class _Job:
    """The processes of a job."""

    def __init__(self, arguments: Sequence[str], workers: Workers, saved: Saved, num_servers: int) -> None:
        self.saved, self.most_restarts = saved, MOST_RESTARTS if saved.out is not None else 0
        self.command, self.asked = [sys.executable, "-m", "bigbatch", *arguments], workers
        self.num_servers, self.oom_kills = num_servers, oom_kills()
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.lost: list[int] = []  # numbers of workers that ended too early and were not started again
        self.restarts = {"server": 0, "worker": 0}
        self.stopped_at, self.at_once, self.told = 0.0, False, False
        self.halted_since: dict[int, float] = {}
        self.ended = set[int]()  # of processes that were halted for too long

    def run(self) -> int:
        """Watch until the first server has ended, then let the others end."""
        with caught(self._stop):
            try:
                self.servers = {number: self._start("server", number) for number in range(self.num_servers)}
                self.workers = {number: self._start("worker", number) for number in range(self.asked.most)}
                code = self._watch()
                end = time.monotonic() + GRACE_S
                while not self.at_once and time.monotonic() < end and any(p.poll() is None for p in self._all()):
                    time.sleep(LOOK_S)
            finally:
                for process in self._all():
                    process.kill()
                    process.wait()
        if self.at_once:
            return self._say("interrupted", f"stopped at once; {self.saved.in_words()}", 130)
        if code == 0 and self.lost and not self.asked.elastic:
            text = f"done, but {len(self.lost)} of {self.asked.most} workers ended too early ({name_workers(self.lost)}); the others did their part"
            return self._say("lost", text, DONE_WITH_FEWER)
        return code

    def _watch(self) -> int:
        while True:
            time.sleep(LOOK_S)
            if self.at_once:
                return 130
            self._end_halted()
            if self.stopped_at and not self.told and self.servers[0].poll() is None:
                self.told = True
                self.servers[0].send_signal(signal.SIGTERM)  # saves and ends; the others hear it from it
            codes = {number: code for number, process in self.servers.items() if (code := process.poll()) is not None}
            if codes.get(0) in ENDS:
                return codes[0]
            if 0 in codes and self.stopped_at:
                return self._after_stop(codes[0])
            dead = {number: code for number, code in codes.items() if code}  # a further server ends well before the first does
            if dead and not self.stopped_at:
                number, code = next(iter(dead.items()))
                if code in ENDS:
                    return self._stop_server(code)
                if (end := self._after_server(f"{self._server(number)} {self._how(self.servers[number])}")) is not None:
                    return end
            for number, process in list(self.workers.items()):
                if process.poll() is not None and not self.stopped_at:
                    end = self._after_worker(number, process.returncode)
                    if end is not None:
                        return end

    def _end_halted(self) -> None:
        """A process that was stopped for too long is as good as dead, and holds the others up."""
        halted = [process for process in self._all() if process.poll() is None and is_stopped(process.pid)]
        self.halted_since = {process.pid: self.halted_since.get(process.pid, time.monotonic()) for process in halted}
        for process in halted:
            if time.monotonic() - self.halted_since[process.pid] > timeout_s():
                self.ended.add(process.pid)
                process.kill()

    def _how(self, process: "subprocess.Popen[bytes]") -> str:
        if process.pid in self.ended:
            return f"was stopped (SIGSTOP, or a debugger) for {timeout_s():g} s (BIGBATCH_TIMEOUT_S)"
        return "lost the parameter server" if process.returncode == LOST_WORKERS else describe_exit(process.returncode, self.oom_kills)

    def _after_stop(self, code: int) -> int:
        """The first server was asked to stop, and did not end by itself."""
        if code in STOPPED:
            return self._say("interrupted", f"stopped before the first update; {self.saved.in_words()}", 130)
        return self._say("lost", f"{self._server(0)} {self._how(self.servers[0])} while it stopped; {self.saved.in_words()}", LOST_WORKERS)

    def _after_server(self, what: str) -> int | None:
        """A server was lost. Returns an exit code where that ends the job; else all start again: their weights must be of one version."""
        if self.restarts["server"] >= self.most_restarts:
            times = f", for the {self.most_restarts + 1}th time" if self.most_restarts else ""
            return self._say("lost", f"{what}{times}; {self.saved.in_words()}", LOST_WORKERS)
        self.restarts["server"] += 1
        self._say("lost", f"{what}; starting it again, from the last checkpoint", LOST_WORKERS)
        for process in self.servers.values():
            process.kill()
            process.wait()
        self.servers = {number: self._start("server", number) for number in self.servers}
        return None

    def _after_worker(self, number: int, code: int) -> int | None:
        """A worker has ended. Returns an exit code where that ends the job."""
        if code in (0, 2):  # it was told that the run has ended, or can't take part: the server knows, or another worker would say the same
            del self.workers[number]
            return self._stop_server(2) if code == 2 else None
        what = f"{name_workers([number], of=self.asked.most)} {self._how(self.workers[number])}"
        if self.asked.elastic or code == 1 or self.restarts["worker"] >= MOST_RESTARTS:
            del self.workers[number]
            self.lost.append(number)
            if not self.workers or (self.asked.elastic and len(self.workers) < self.asked.least):
                self._stop_server(LOST_WORKERS)
                few = f", fewer than {self.asked.least}" if self.workers else ""
                return self._say(
                    "lost", f"{what}; {len(self.workers)} left{few}; {self.saved.in_words()}", 1 if code == 1 else LOST_WORKERS
                )
            self._say("lost", f"{what}; going on with {len(self.workers)}", LOST_WORKERS)
        else:
            self.restarts["worker"] += 1
            self.workers[number] = self._start("worker", number)
            self._say("lost", f"{what}; starting it again", LOST_WORKERS)
        return None

    def _stop_server(self, code: int) -> int:
        """Let the first save and end."""
        if self.servers[0].poll() is None:
            self.servers[0].send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.servers[0].wait(REPORT_GRACE_S)
        return code

    def _start(self, kind: str, number: int) -> "subprocess.Popen[bytes]":
        rank, of = (number, self.num_servers) if kind == "server" else (1000 + number, self.asked.most)
        own = {ROLE: f"{kind}:{number}", "RANK": str(rank), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(of)}  # its GPU, its cores
        return subprocess.Popen(self.command, env={**os.environ, **own})

    def _stop(self, number: int) -> None:
        """The first server is told by `_watch`; at a second Ctrl-C all just end."""
        now = time.monotonic()
        self.at_once = self.at_once or (number == signal.SIGINT and 0 < self.stopped_at < now - SIGNAL_DEBOUNCE_S)
        self.stopped_at = self.stopped_at or now

    def _server(self, number: int) -> str:
        return f"parameter server {number} of {self.num_servers}" if self.num_servers > 1 else "the parameter server"

    def _say(self, label: str, text: str, code: int) -> int:
        print(f"{label}: {text}\n", end="", file=sys.stderr, flush=True)
        return code

    def _all(self) -> list["subprocess.Popen[bytes]"]:
        return [*self.servers.values(), *self.workers.values()]
