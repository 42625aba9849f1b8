"""Start parameter servers and their workers on this machine, and restart those that die.

`launch` ends all workers when one of them dies; here processes are independent. A server that dies is restarted from the run's last
checkpoint. A worker that dies is detected by the server within a second, and restarted if the number of workers is fixed. A worker that
exits with an error of its own is not restarted: the run then ends with exit code 5. Each death is reported in one line.
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
from bigbatch.core.signals import caught
from bigbatch.core.storage.saved import Saved

MOST_RESTARTS = 100
"""Most restarts of servers, and of workers, in a job."""
POLL_S = 0.05
ORDERLY = (0, *REPORTED)
"""Exit codes of a server that exited in an orderly way; with any other it is restarted."""
DONE_WITH_FEWER = 5
"""Exit code of a job that is done, but lost workers."""


def supervise(arguments: Sequence[str], workers: Workers, saved: Saved, *, num_servers: int = 1) -> int:
    """Run `python -m bigbatch ARGUMENTS` as servers and workers on this machine and wait for them.

    Args:
        arguments: Arguments of the command, without `--workers`.
        workers: A fixed number of workers, which are restarted when they die; or a range: the maximum is started, and the run continues
            with the remaining workers while there are at least the minimum.
        saved: Where the run saves its checkpoints, and the user's command.
        num_servers: Number of servers over which the parameters are sharded.

    Returns:
        Exit code of the job: the first server's; `DONE_WITH_FEWER` if a fixed number of workers was requested and some were lost.
    """
    with reserved_ports(num_servers) as ports:
        os.environ |= {
            JOB: os.environ.get(JOB, uuid.uuid4().hex),
            LAUNCHER: str(os.getpid()),
            SERVERS: ",".join(f"127.0.0.1:{port}" for port in ports),
            TOKEN: os.environ.get(TOKEN, secrets.token_hex(32)),
            NUM_WORKERS: str(workers.maximum),
            THREADS: threads_per_worker(workers.maximum),
        }
        return _Job(arguments, workers, saved, num_servers).run()


class _Job:
    """The processes of a job."""

    def __init__(self, arguments: Sequence[str], workers: Workers, saved: Saved, num_servers: int) -> None:
        self.saved, self.max_restarts = saved, MOST_RESTARTS if saved.out is not None else 0
        self.command, self.requested = [sys.executable, "-m", "bigbatch", *arguments], workers
        self.num_servers, self.oom_kills = num_servers, oom_kills()
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.lost: list[int] = []  # workers that exited early and were not restarted
        self.restarts = {"server": 0, "worker": 0}
        self.stopped_at, self.stop_at_once, self.forwarded = 0.0, False, False
        self.suspended_since: dict[int, float] = {}
        self.timed_out = set[int]()  # ids of processes that were suspended for too long

    def run(self) -> int:
        """Monitor until the first server has exited, then wait for the others."""
        with caught(self._stop):
            try:
                self.servers = {number: self._start("server", number) for number in range(self.num_servers)}
                self.workers = {number: self._start("worker", number) for number in range(self.requested.maximum)}
                code = self._watch()
                end = time.monotonic() + GRACE_S
                while not self.stop_at_once and time.monotonic() < end and any(p.poll() is None for p in self._all()):
                    time.sleep(POLL_S)
            finally:
                for process in self._all():
                    process.kill()
                    process.wait()
        if self.stop_at_once:
            return self._report("interrupted", f"stopped at once; {self.saved.in_words()}", 130)
        if code == 0 and self.lost and not self.requested.elastic:
            lost = f"{len(self.lost)} of {self.requested.maximum} workers exited early ({name_workers(self.lost)})"
            return self._report("lost", f"done, but {lost}; the others did the rest", DONE_WITH_FEWER)
        return code

    def _watch(self) -> int:
        while True:
            time.sleep(POLL_S)
            if self.stop_at_once:
                return 130
            self._kill_suspended()
            if self.stopped_at and not self.forwarded and self.servers[0].poll() is None:
                self.forwarded = True
                self.servers[0].send_signal(signal.SIGTERM)  # it saves and exits; the others get the end of the run from it
            codes = {number: code for number, process in self.servers.items() if (code := process.poll()) is not None}
            if codes.get(0) in ORDERLY:
                return codes[0]
            if 0 in codes and self.stopped_at:
                return self._after_stop(codes[0])
            dead = {number: code for number, code in codes.items() if code}  # further servers exit with 0 before the first does
            if dead and not self.stopped_at:
                number, code = next(iter(dead.items()))
                if code in ORDERLY:
                    return self._stop_server(code)
                if (end := self._after_server(f"{self._server(number)} {self._how(self.servers[number])}")) is not None:
                    return end
            for number, process in list(self.workers.items()):
                if process.poll() is not None and not self.stopped_at:
                    end = self._after_worker(number, process.returncode)
                    if end is not None:
                        return end

    def _kill_suspended(self) -> None:
        """Kill processes that were stopped by SIGSTOP or a debugger for longer than the time-out: they block the others."""
        suspended = [process for process in self._all() if process.poll() is None and is_stopped(process.pid)]
        self.suspended_since = {process.pid: self.suspended_since.get(process.pid, time.monotonic()) for process in suspended}
        for process in suspended:
            if time.monotonic() - self.suspended_since[process.pid] > timeout_s():
                self.timed_out.add(process.pid)
                process.kill()

    def _how(self, process: "subprocess.Popen[bytes]") -> str:
        if process.pid in self.timed_out:
            return f"was stopped (SIGSTOP, or a debugger) for {timeout_s():g} s (BIGBATCH_TIMEOUT_S)"
        return "lost the parameter server" if process.returncode == LOST_WORKERS else describe_exit(process.returncode, self.oom_kills)

    def _after_stop(self, code: int) -> int:
        """The first server was asked to stop, but died. Returns the exit code of the job."""
        if code in STOPPED:
            return self._report("interrupted", f"stopped before the first update; {self.saved.in_words()}", 130)
        return self._report("lost", f"{self._server(0)} {self._how(self.servers[0])} while stopping; {self.saved.in_words()}", LOST_WORKERS)

    def _after_server(self, what: str) -> int | None:
        """A server died. Returns an exit code if that ends the job; else restarts all servers, since all need weights of one version."""
        if self.restarts["server"] >= self.max_restarts:
            times = f", for the {self.max_restarts + 1}th time" if self.max_restarts else ""
            return self._report("lost", f"{what}{times}; {self.saved.in_words()}", LOST_WORKERS)
        self.restarts["server"] += 1
        self._report("lost", f"{what}; restarting it from the last checkpoint", LOST_WORKERS)
        for process in self.servers.values():
            process.kill()
            process.wait()
        self.servers = {number: self._start("server", number) for number in self.servers}
        return None

    def _after_worker(self, number: int, code: int) -> int | None:
        """A worker has exited. Returns an exit code if that ends the job."""
        if code in (0, 2):  # the run has ended; or the worker was refused, as any other would be
            del self.workers[number]
            return self._stop_server(2) if code == 2 else None
        what = f"{name_workers([number], of=self.requested.maximum)} {self._how(self.workers[number])}"
        if self.requested.elastic or code == 1 or self.restarts["worker"] >= MOST_RESTARTS:
            del self.workers[number]
            self.lost.append(number)
            if not self.workers or (self.requested.elastic and len(self.workers) < self.requested.minimum):
                self._stop_server(LOST_WORKERS)
                few = f", fewer than {self.requested.minimum}" if self.workers else ""
                return self._report(
                    "lost", f"{what}; {len(self.workers)} left{few}; {self.saved.in_words()}", 1 if code == 1 else LOST_WORKERS
                )
            self._report("lost", f"{what}; continuing with {len(self.workers)}", LOST_WORKERS)
        else:
            self.restarts["worker"] += 1
            self.workers[number] = self._start("worker", number)
            self._report("lost", f"{what}; restarting it", LOST_WORKERS)
        return None

    def _stop_server(self, code: int) -> int:
        """Let the first server save and exit."""
        if self.servers[0].poll() is None:
            self.servers[0].send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.servers[0].wait(REPORT_GRACE_S)
        return code

    def _start(self, kind: str, number: int) -> "subprocess.Popen[bytes]":
        rank, of = (number, self.num_servers) if kind == "server" else (1000 + number, self.requested.maximum)
        own = {
            ROLE: f"{kind}:{number}",
            "RANK": str(rank),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": str(of),
        }  # for its GPU and its cores
        return subprocess.Popen(self.command, env={**os.environ, **own})

    def _stop(self, number: int) -> None:
        """Signal handler: `_watch` forwards the signal to the first server; after a second Ctrl-C all processes are killed."""
        now = time.monotonic()
        self.stop_at_once = self.stop_at_once or (number == signal.SIGINT and 0 < self.stopped_at < now - SIGNAL_DEBOUNCE_S)
        self.stopped_at = self.stopped_at or now

    def _server(self, number: int) -> str:
        return f"parameter server {number} of {self.num_servers}" if self.num_servers > 1 else "the parameter server"

    def _report(self, label: str, text: str, code: int) -> int:
        print(f"{label}: {text}\n", end="", file=sys.stderr, flush=True)
        return code

    def _all(self) -> list["subprocess.Popen[bytes]"]:
        return [*self.servers.values(), *self.workers.values()]
