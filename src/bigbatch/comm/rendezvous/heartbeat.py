"""Notice at once that a worker is gone, also while one waits for the GPU.

gloo's exchanges end in an error as soon as a connection breaks. NCCL's are kernels: a worker that waits for one hears nothing, until a
watchdog aborts it after the time-out. So each rank sends a heartbeat to the one before it, around the ring, over a gloo group of its own,
and a thread listens. A connection that breaks, or that is silent for the time-out, means that a worker is lost; that is handed on around
the ring, and every rank that has not ended by itself soon after is ended, with exit code 4.
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
from bigbatch.core.environment import LAUNCHER

GRACE_S = 2.0
"""Seconds that a worker has to end by itself, once another is lost."""
SHUTDOWN_TIMEOUT_S = 10.0
"""Seconds that a worker which is done waits at most for its neighbour to be done too."""
HEARTBEATS_PER_TIMEOUT = 4
"""Heartbeats in the time after which a silent rank counts as lost."""
FOREVER = timedelta(days=365)
EXIT_CODE = 4  # of lost workers
ALIVE, DONE, FAILED = -1, -2, -3  # messages; a number from 0 is the rank that is lost


@contextmanager
def heartbeats(rank: int, world_size: int, timeout_s: float) -> Iterator[None]:
    """Around all that the ranks do together; each of them calls it. The process ends if another is lost and this one does not notice.

    Args:
        rank: Of this process.
        world_size: Number of ranks.
        timeout_s: After so many seconds of silence a rank counts as lost.
    """
    watch = _HeartbeatRing(rank, world_size, timeout_s)
    watch.start()
    try:
        yield
    except (UserError, Interrupted, Diverged):  # which all ranks know of, as a rule, and end by
        watch.stop(FAILED)
        raise
    except BaseException:
        watch.leave()
        raise
    watch.stop()


class _HeartbeatRing:
    """A rank's ear on the next rank, and its voice for the one before."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self._rank, self._world_size, self._timeout_s = rank, world_size, timeout_s
        self._before, self._next = (rank - 1) % world_size, (rank + 1) % world_size
        self._group = dist.new_group(backend="gloo", timeout=FOREVER)
        self._done, self._left = threading.Event(), threading.Event()
        self._farewell, self._sent = DONE, deque[Any](maxlen=2 * HEARTBEATS_PER_TIMEOUT)  # what is being sent must not be freed
        self._unheard = 0  # own heartbeats since one of the next rank's was heard; none while this process is halted
        threads = [threading.Thread(target=target, daemon=True, name="watch ranks") for target in (self._listen, self._beat)]
        self._threads, self._listener = threads, threads[0]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, farewell: int = DONE) -> None:
        """This rank is done, as all others soon are, or has failed; one that is not soon done then is ended."""
        self._farewell = farewell
        self._done.set()
        for thread in self._threads:
            thread.join(SHUTDOWN_TIMEOUT_S)
        self._left.set()

    def leave(self) -> None:
        """This rank ends in an error of its own: others learn of it by the broken connection."""
        self._left.set()
        self._done.set()

    def _say(self, message: int) -> Any:
        """Send a message, without waiting: the rank before may be halted, or gone."""
        with suppress(RuntimeError):
            tensor = torch.tensor([message])
            work = dist.isend(tensor, self._before, group=self._group)
            self._sent.append((work, tensor))
            return work

    def _beat(self) -> None:
        while not self._done.wait(self._timeout_s / HEARTBEATS_PER_TIMEOUT):
            self._say(ALIVE)
            self._unheard += 1  # counted here and not left to gloo, which closes all its connections when one times out
            if self._unheard > HEARTBEATS_PER_TIMEOUT and self._listener.is_alive():
                self._lost(self._next)
        if not self._left.is_set() and (work := self._say(self._farewell)) is not None:
            with suppress(RuntimeError):
                work.wait(timedelta(seconds=SHUTDOWN_TIMEOUT_S))

    def _listen(self) -> None:
        message = torch.empty(1, dtype=torch.int64)
        heard = ALIVE
        while heard == ALIVE:
            self._unheard = 0
            try:
                dist.recv(message, self._next, group=self._group)
                heard = int(message)
            except RuntimeError:
                heard = self._next
        if heard == FAILED:
            if self._done.wait(SHUTDOWN_TIMEOUT_S):
                return
            heard = self._next
        if heard != DONE and not self._left.is_set():
            self._lost(heard)

    def _lost(self, rank: int) -> None:
        """Hand on that a rank is lost, and end this process, unless it is ending anyway."""
        self._say(rank)
        if self._done.wait(GRACE_S):
            return
        if LAUNCHER not in os.environ:  # else the launcher says who was lost
            who = f"worker {self._rank}: " if self._rank else ""
            text = f"worker {self._rank} of {self._world_size} lost worker {rank}; go on from the last checkpoint with --resume"
            sys.stderr.write(f"{who}lost: {text}\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
