r"""AD-PSGD: asynchronous gossip: each worker averages with one random neighbour at a time, whenever it is ready.

Paper:   Lian, Zhang, Zhang, Liu 2018, Asynchronous Decentralized Parallel Stochastic Gradient Descent, arXiv:1710.06952,
         Algorithm 1, on a bipartite graph.
Formula: worker i, in a loop, while a thread of it averages:
             g_i = mean gradient over the local batch at a copy of x_i
             x_i, x_j <- (x_i + x_j) / 2   for a random neighbour j, atomically on both
             x_i <- x_i - gamma g_i
Units:   a message has the size of the weights.
Differs: workers of even rank are active (they send requests), the others passive (they reply), so that no two wait for each other: the
         graph is bipartite. Any torch optimizer may stand for gamma g_i; its step is added to x_i, which may have been averaged meanwhile.
         An active worker averages at most once an update, while it computes.
         Messages use gloo, and host memory for GPUs: a passive worker receives from any source, and NCCL needs a known one.

A slow worker delays only the neighbours that send it a request at that moment. Runs are not reproducible and cannot be resumed bit for bit.
`bigbatch train` has the asynchronous parameter server for workers of unequal speed; AD-PSGD is for your own training loop.
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
from bigbatch.core.hardware.devices import CPU
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="AD-PSGD",
    title="Asynchronous Decentralized Parallel Stochastic Gradient Descent",
    authors="Lian, Zhang, Zhang, Liu",
    year=2018,
    arxiv="1710.06952",
    where="Algorithm 1",
)
REQUEST, REPLY = 1 << 24, (1 << 24) + 1  # message tags, far from those of `NeighbourExchange`


def average_with_neighbour(own: Tensor, sent: Tensor, received: Tensor) -> Tensor:
    """Average with a neighbour, when the own weights have changed since they were sent: own + (received - sent) / 2.

    >>> average_with_neighbour(torch.tensor([1.5]), torch.tensor([1.0]), torch.tensor([3.0]))  # (1 + 3)/2, and a step of 0.5
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
        comm.average_weights(optimizer)         # the mean over workers

    Args:
        model: The model; its weights are set to those of rank 0.
        ranks: The workers, an even number.
        neighbours: Neighbours of this worker, ranks of the other parity; both ends of an edge must list it. By default all of them.
        seed: Seed of the choice of neighbours.

    Raises:
        UserError: If the number of workers is odd, or a neighbour has the same parity.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, neighbours: list[int] | None = None, seed: int = 0) -> None:
        super().__init__(model, ranks)
        if ranks.world_size % 2 and ranks.world_size > 1:
            raise UserError(f"AD-PSGD with {ranks.world_size} workers: half of them must be active and half passive; start an even number")
        others = range(1 - ranks.rank % 2, ranks.world_size, 2)
        self.neighbours = sorted(neighbours) if neighbours is not None else list(others)
        if not set(self.neighbours) <= set(others) or (ranks.world_size > 1 and not self.neighbours):
            raise UserError(
                f"neighbours = {self.neighbours} of worker {ranks.rank}: must be among {list(others)}, the ranks of the other parity"
            )
        self.is_active = ranks.rank % 2 == 0
        self.averages = 0
        self._random = random.Random(f"{seed} {ranks.rank}")
        self._lock = threading.Lock()
        self._x = self._flat_weights()  # on the model's device; messages are on the CPU
        self._group: Any = None
        if ranks.world_size > 1:
            dist.broadcast(self._x, src=0)
            self._group = cpu_group()
        self._set_weights(self._x)
        self._snapshot = self._x.clone()  # the weights at which the gradient is computed
        self._ready, self._ended = threading.Semaphore(0), False
        self._error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator["ADPSGD"]:
        """Context of the training loop: a thread averages; leaving the context waits until no neighbour sends requests any more.

        An error is let through at once: neighbours notice a lost worker when its process ends.

        Raises:
            RuntimeError: If communication failed.
        """
        if self.ranks.world_size == 1:
            yield self
            return
        thread = threading.Thread(target=self._run_thread, daemon=True, name="AD-PSGD")
        thread.start()
        yield self
        self._ended = True
        self._ready.release()
        thread.join()
        if self._error is not None:
            raise self._error
        self._set_weights(self._x)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Add the step to the weights, which may have been averaged since, and continue from the result.

        Raises:
            RuntimeError: If communication has failed, as with a worker that is gone.
        """
        if self._error is not None:
            raise self._error
        self.updates = updates
        with self._lock:
            self._x += self._flat_weights() - self._snapshot
            self._snapshot.copy_(self._x)
        self._set_weights(self._snapshot)
        self._ready.release()

    def _run_thread(self) -> None:
        try:
            self._run_active() if self.is_active else self._run_passive()
        except BaseException as error:
            self._error = error

    def _run_active(self) -> None:
        """Average with a random neighbour after each update; at the end, send all neighbours an empty request."""
        while True:
            self._ready.acquire()
            if self._ended:
                break
            while self._ready.acquire(blocking=False):  # updates made in the meantime
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

    def _run_passive(self) -> None:
        """Average with each neighbour that sends a request, until all neighbours have ended."""
        request = torch.empty(len(self._x) + 1, dtype=self._x.dtype, device=CPU)
        ended = 0
        while ended < len(self.neighbours):
            j = dist.recv(request, group=self._group, tag=REQUEST)
            if not request[-1]:
                ended += 1
                continue
            with self._lock:
                own = self._x.clone()
                self._x.copy_(average_with_neighbour(own, own, request[:-1].to(own.device)))
            dist.send(own.to(CPU), j, self._group, tag=REPLY)
            self.averages += 1
