"""Heartbeats: detect a lost rank at once, also while this rank waits for an NCCL collective.

gloo's collectives fail as soon as a connection breaks. NCCL's are GPU kernels: a rank that waits for one sees no error until torch's
watchdog aborts it after the time-out. So each rank sends heartbeats to the previous rank of a ring, over a separate gloo group, and a
thread receives those of the next rank. A broken connection, or no heartbeat within the time-out, means that a rank is lost. The loss is
forwarded around the ring, and each rank that does not exit by itself soon afterwards exits with code 4.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bigbatch.core.checks import Diverged, Interrupted, UserError
from bigbatch.core.environment import LAUNCHER, how_to_go_on

GRACE_S = 2.0
"""Seconds that a rank has to exit by itself, once another is lost."""
SHUTDOWN_TIMEOUT_S = 10.0
"""Longest wait, in seconds, of a rank that is done for its neighbour to be done."""
HEARTBEATS_PER_TIMEOUT = 4
"""Heartbeats sent within the time-out."""
FOREVER = timedelta(days=365)
EXIT_CODE = 4  # workers were lost
ALIVE, DONE, FAILED = -1, -2, -3  # messages; from 0 on, the number of a lost rank


@contextmanager
def heartbeats(rank: int, world_size: int, timeout_s: float) -> Iterator[None]:
    """Context of all communication; every rank enters it. Exits the process if another rank is lost and this one is blocked.

    Args:
        rank: Rank of this process.
        world_size: Number of ranks.
        timeout_s: Seconds without a heartbeat after which a rank counts as lost.
    """
    ring = _HeartbeatRing(rank, world_size, timeout_s)
    ring.start()
    try:
        yield
    except (UserError, Interrupted, Diverged):  # usually raised on all ranks
        ring.stop(FAILED)
        raise
    except BaseException:
        ring.abort()
        raise
    ring.stop()


class _HeartbeatRing:
    """Sends heartbeats to the previous rank and receives those of the next one."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self._rank, self._world_size, self._timeout_s = rank, world_size, timeout_s
        self._previous, self._next = (rank - 1) % world_size, (rank + 1) % world_size
        self._group = dist.new_group(backend="gloo", timeout=FOREVER)
        self._done, self._aborted = threading.Event(), threading.Event()
        self._last_message, self._sent = DONE, deque[Any](maxlen=2 * HEARTBEATS_PER_TIMEOUT)  # keeps tensors alive while they are sent
        self._missed = 0  # own heartbeats since the last one of the next rank; does not grow while this process is stopped
        threads = [threading.Thread(target=target, daemon=True, name="heartbeats") for target in (self._receive, self._send_heartbeats)]
        self._threads, self._receiver = threads, threads[0]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, message: int = DONE) -> None:
        """Send the last message, DONE or FAILED, and wait for the neighbours; a rank that does not end soon then exits."""
        self._last_message = message
        self._done.set()
        for thread in self._threads:
            thread.join(SHUTDOWN_TIMEOUT_S)
        self._aborted.set()

    def abort(self) -> None:
        """Stop without a message, after an unexpected error: the others see the broken connection."""
        self._aborted.set()
        self._done.set()

    def _send(self, message: int) -> Any:
        """Send a message without waiting: the previous rank may be stopped or gone."""
        with suppress(RuntimeError):
            tensor = torch.tensor([message])
            work = dist.isend(tensor, self._previous, group=self._group)
            self._sent.append((work, tensor))
            return work

    def _send_heartbeats(self) -> None:
        while not self._done.wait(self._timeout_s / HEARTBEATS_PER_TIMEOUT):
            self._send(ALIVE)
            self._missed += 1  # counted here, since gloo closes all connections when one of its receives times out
            if self._missed > HEARTBEATS_PER_TIMEOUT and self._receiver.is_alive():
                self._lost(self._next)
        if not self._aborted.is_set() and (work := self._send(self._last_message)) is not None:
            with suppress(RuntimeError):
                work.wait(timedelta(seconds=SHUTDOWN_TIMEOUT_S))

    def _receive(self) -> None:
        message = torch.empty(1, dtype=torch.int64)
        received = ALIVE
        while received == ALIVE:
            self._missed = 0
            try:
                dist.recv(message, self._next, group=self._group)
                received = int(message)
            except RuntimeError:
                received = self._next
        if received == FAILED:
            if self._done.wait(SHUTDOWN_TIMEOUT_S):
                return
            received = self._next
        if received != DONE and not self._aborted.is_set():
            self._lost(received)

    def _lost(self, rank: int) -> None:
        """Forward that a rank is lost, and exit this process unless it exits by itself."""
        self._send(rank)
        if self._done.wait(GRACE_S):
            return
        if LAUNCHER not in os.environ:  # else the launcher reports the lost worker
            who = f"worker {self._rank}: " if self._rank else ""
            text = f"worker {self._rank} of {self._world_size} lost worker {rank}; to go on from the last checkpoint, {how_to_go_on()}"
            sys.stderr.write(f"{who}lost: {text}\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
