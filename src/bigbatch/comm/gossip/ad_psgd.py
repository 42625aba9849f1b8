r"""AD-PSGD: gossip without a common clock: each worker averages with one random neighbour at a time, whenever it is ready.

Paper:   Lian, Zhang, Zhang, Liu 2018, Asynchronous Decentralized Parallel Stochastic Gradient Descent, arXiv:1710.06952,
         Algorithm 1, on a bipartite graph.
Formula: worker i, over and over, and meanwhile a thread that averages:
             g_i = mean gradient over the worker's own samples at a copy of x_i
             x_i, x_j <- (x_i + x_j) / 2   for a random neighbour j, at once on both
             x_i <- x_i - gamma g_i
Units:   a message has the size of the weights.
Differs: half of the workers (those of even rank) ask, the others answer, so that no two wait for each other: the graph is bipartite. Any
         torch optimizer may stand for gamma g_i; what it changed is added to x_i, which may have been averaged meanwhile.
         An asking worker averages once an update at most, while it computes.
         Messages go by gloo, of GPUs through the host's memory: whoever answers does not know who will ask, and NCCL receives from a known
         sender only.

A worker that is slow delays nobody but those who ask it in that moment. No two runs are alike, and a run can't be resumed bit for bit:
`bigbatch train` has the asynchronous parameter server for uneven workers, and this is for loops of your own.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.model_averaging import ModelAveraging
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.comm.rendezvous.backends import cpu_group
from bigbatch.core.checks import UserError
from bigbatch.core.devices import CPU
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="AD-PSGD",
    title="Asynchronous Decentralized Parallel Stochastic Gradient Descent",
    authors="Lian, Zhang, Zhang, Liu",
    year=2018,
    arxiv="1710.06952",
    where="Algorithm 1",
)
REQUEST, REPLY = 1 << 24, (1 << 24) + 1  # tags of messages, far from those of gossip's exchanges


def average_with_neighbour(own: Tensor, sent: Tensor, received: Tensor) -> Tensor:
    """What an average with a neighbour makes of own weights that have moved since they were sent: own + (received - sent) / 2.

    >>> average_with_neighbour(torch.tensor([1.5]), torch.tensor([1.0]), torch.tensor([3.0]))  # (1 + 3)/2, and the 0.5 moved meanwhile
    tensor([2.5000])
    """
    return own + (received - sent) / 2


class ADPSGD(ModelAveraging):
    """See the module's docstring for the rule.

        with ADPSGD(model, ranks).running() as comm:
            for batch in batches:
                loss(model(batch)).backward()
                optimizer.step()
                comm.after_step(optimizer, ...)
        comm.settle(optimizer)         # the mean of all, for good

    Args:
        model: Made the first worker's.
        ranks: The workers, an even number.
        neighbours: Of this worker: ranks of the other parity, the same edges seen from both ends; by default all of them.
        seed: Of whom is asked.

    Raises:
        UserError: If the number of workers is odd, or a neighbour is of the same parity.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, neighbours: list[int] | None = None, seed: int = 0) -> None:
        super().__init__(model, ranks)
        if ranks.world_size % 2 and ranks.world_size > 1:
            raise UserError(f"AD-PSGD of {ranks.world_size} workers: half of them ask and half answer; start an even number")
        others = range(1 - ranks.rank % 2, ranks.world_size, 2)
        self.neighbours = sorted(neighbours) if neighbours is not None else list(others)
        if not set(self.neighbours) <= set(others) or (ranks.world_size > 1 and not self.neighbours):
            raise UserError(f"neighbours = {self.neighbours} of worker {ranks.rank}: must be some of {list(others)}, of the other parity")
        self.asks = ranks.rank % 2 == 0
        self.averages = 0
        self._random = random.Random(f"{seed} {ranks.rank}")
        self._lock = threading.Lock()
        self._x = self._flat()  # on the model's device; messages are on the CPU
        self._group: Any = None
        if ranks.world_size > 1:
            dist.broadcast(self._x, src=0)
            self._group = cpu_group()
        self._take(self._x)
        self._at = self._x.clone()  # where the gradient is computed
        self._ready, self._ended = threading.Semaphore(0), False
        self._error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator["ADPSGD"]:
        """While the loop runs, a thread averages; leaving waits until no neighbour asks any more.

        Raises:
            RuntimeError: If an exchange failed.
        """
        if self.ranks.world_size == 1:
            yield self
            return
        thread = threading.Thread(target=self._guarded, daemon=True, name="AD-PSGD")
        thread.start()
        try:
            yield self
        finally:
            self._ended = True
            self._ready.release()
            thread.join()
        if self._error is not None:
            raise self._error
        self._take(self._x)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Add the step to the weights, wherever they have been averaged to, and go on from there."""
        self.updates = updates
        with self._lock:
            self._x += self._flat() - self._at
            self._at.copy_(self._x)
        self._take(self._at)
        self._ready.release()

    def _guarded(self) -> None:
        try:
            self._ask() if self.asks else self._answer()
        except BaseException as error:
            self._error = error

    def _ask(self) -> None:
        """Average with a random neighbour for each update; in the end tell all neighbours."""
        while True:
            self._ready.acquire()
            if self._ended:
                break
            while self._ready.acquire(blocking=False):  # updates that went by meanwhile
                pass
            with self._lock:
                sent = self._x.clone()
            received, j = torch.empty_like(sent, device=CPU), self._random.choice(self.neighbours)
            dist.send(torch.cat([sent, sent.new_ones(1)]).to(CPU), j, self._group, tag=REQUEST)
            dist.recv(received, j, self._group, tag=REPLY)
            with self._lock:
                self._x.copy_(average_with_neighbour(self._x, sent, received.to(sent.device)))
            self.averages += 1
            if self._ended:
                break
        for j in self.neighbours:
            dist.send(torch.zeros(len(self._x) + 1, dtype=self._x.dtype, device=CPU), j, self._group, tag=REQUEST)

    def _answer(self) -> None:
        """Average with whoever asks, until all neighbours have said that they are through."""
        asked = torch.empty(len(self._x) + 1, dtype=self._x.dtype, device=CPU)
        through = 0
        while through < len(self.neighbours):
            j = dist.recv(asked, group=self._group, tag=REQUEST)
            if not asked[-1]:
                through += 1
                continue
            with self._lock:
                own = self._x.clone()
                self._x.copy_(average_with_neighbour(own, own, asked[:-1].to(own.device)))
            dist.send(own.to(CPU), j, self._group, tag=REPLY)
            self.averages += 1
