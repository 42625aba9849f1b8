"""Start a parameter server and its workers on this machine, and keep them going.

torchrun ends all processes when one of them dies; here each has its own fate. A server that dies is started again and goes on from the
run's last checkpoint. A worker that dies is missed by the server within a second, and started again where a fixed number was asked for;
one that ends in an error of its own is not.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from bigbatch.comm.launch import GRACE_S, JOB, LAUNCHER, Workers
from bigbatch.comm.role import NUM_WORKERS, ROLE, SERVERS, TOKEN

MOST_RESTARTS = 100
"""Of servers, and of workers, over the whole job."""
LOOK_S = 0.05
ENDS = (0, 1, 2, 3, 130)
"""Exit codes of a server that ended by itself; with any other it is started again."""


def supervise(arguments: Sequence[str], workers: Workers, *, num_servers: int = 1, resumes: bool = True) -> int:
    """Run `python -m bigbatch ARGUMENTS` as servers and workers on this machine and wait for the end.

    Args:
        arguments: Of the command, without `--workers`.
        workers: A number: that many are kept going. A range: the larger number is started, and the run goes on with those that are left,
            as long as there are as many as the smaller.
        num_servers: Servers over which the parameters are spread.
        resumes: Whether the run has a folder, from which a server that died can go on.

    Returns:
        Exit code of the job: the first server's.
    """
    with reserved_ports(num_servers) as ports:
        os.environ |= {
            JOB: os.environ.get(JOB, uuid.uuid4().hex),
            LAUNCHER: str(os.getpid()),
            SERVERS: ",".join(f"127.0.0.1:{port}" for port in ports),
            TOKEN: os.environ.get(TOKEN, secrets.token_hex(32)),
            NUM_WORKERS: str(workers.most),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or _threads(workers.most),
        }
        return _Job(arguments, workers, num_servers, MOST_RESTARTS if resumes else 0).run()


class _Job:
    """The processes of a job."""

    def __init__(self, arguments: Sequence[str], workers: Workers, num_servers: int, most_restarts: int) -> None:
        self.most_restarts = most_restarts
        self.command, self.asked = [sys.executable, "-m", "bigbatch", *arguments], workers
        self.servers = {number: self._start("server", number) for number in range(num_servers)}
        self.workers = {number: self._start("worker", number) for number in range(workers.most)}
        self.restarts = {"server": 0, "worker": 0}
        self.signalled = 0

    def run(self) -> int:
        """Watch until the first server has ended, then let the others end."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = self._watch()
            end = time.monotonic() + GRACE_S
            while time.monotonic() < end and any(p.poll() is None for p in self._all()):
                time.sleep(LOOK_S)
            return code
        finally:
            for process in self._all():
                process.kill()
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> int:
        while True:
            time.sleep(LOOK_S)
            codes = [process.poll() for process in self.servers.values()]
            if codes[0] in ENDS or (codes[0] is not None and self.signalled):
                return codes[0] if codes[0] >= 0 else 128 - codes[0]
            dead = [code for code in codes if code not in (None, 0)]  # a further server ends well before the first does
            if dead and not self.signalled:
                if dead[0] in ENDS:
                    return self._stop_server(dead[0])
                if self.restarts["server"] >= self.most_restarts:
                    why = (
                        f"{self.most_restarts + 1} times; go on with --resume" if self.most_restarts else "without --out: nothing was saved"
                    )
                    print(f"lost: the parameter server died {why}", file=sys.stderr)
                    return 4
                self._restart_servers()
            for number, process in list(self.workers.items()):
                if process.poll() is not None and not self.signalled:
                    code = self._after_worker(number, process.returncode)
                    if code is not None:
                        return code

    def _restart_servers(self) -> None:
        """All of them: their parts of the weights must be of one version."""
        self.restarts["server"] += 1
        for process in self.servers.values():
            process.kill()
            process.wait()
        self.servers = {number: self._start("server", number) for number in self.servers}

    def _after_worker(self, number: int, code: int) -> int | None:
        """A worker has ended. Returns an exit code where that ends the job."""
        if code in (0, 2):  # it was told that the run has ended, or can't take part: the server knows, or another worker would say the same
            del self.workers[number]
            return self._stop_server(2) if code == 2 else None
        if self.asked.elastic or code == 1 or self.restarts["worker"] >= MOST_RESTARTS:
            del self.workers[number]
        else:
            self.restarts["worker"] += 1
            self.workers[number] = self._start("worker", number)
        if len(self.workers) < self.asked.least and self.asked.elastic:
            print(f"lost: {len(self.workers)} workers left, fewer than {self.asked.least}; go on with --resume", file=sys.stderr)
            return self._stop_server(4)
        return self._stop_server(max(code, 1)) if not self.workers else None

    def _stop_server(self, code: int) -> int:
        """Let the first save and end."""
        self._stop(signal.SIGTERM, None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.servers[0].wait(30)
        return code

    def _start(self, kind: str, number: int) -> "subprocess.Popen[bytes]":
        rank = number if kind == "server" else 1000 + number
        return subprocess.Popen(self.command, env={**os.environ, ROLE: f"{kind}:{number}", "RANK": str(rank)})

    def _stop(self, number: int, _frame: Any) -> None:
        """The first server saves and ends; the others hear it from it."""
        self.signalled = number
        if self.servers[0].poll() is None:
            self.servers[0].send_signal(signal.SIGTERM)

    def _all(self) -> list["subprocess.Popen[bytes]"]:
        return [*self.servers.values(), *self.workers.values()]


def _threads(num_workers: int) -> str:
    from bigbatch.core.machine import usable_cores  # brings torch, which nothing else here needs

    return str(max(1, usable_cores() // num_workers))


@contextlib.contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Free ports that no other process is given: bound here, but not listened at, so that a server can, again and again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]
