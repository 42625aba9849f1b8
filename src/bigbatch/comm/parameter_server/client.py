"""A worker of a parameter server: pull weights and work, compute, push the gradient.

    with ParameterClient(addresses, token, model.parameters(), worker=0) as client:
        while (work := client.pull()) is not None:    # the weights are in the model
            losses = ...                              # of samples work.start to work.start + work.num_samples of the run
            losses.mean().backward()
            client.push(work, losses.sum())           # the mean gradient over these samples is taken from p.grad, and cleared

A lost connection is made anew, and what was asked is asked again: the server tells a request that it has dealt with from one that it has
not. When it stays away, `pull` and `push` end in `LostWorkers`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from bigbatch.comm.parameter_server.connection import Connection
from bigbatch.comm.parameter_server.messages import Kind, Layout, Reply, Status, digest_of
from bigbatch.comm.parameter_server.shard_server import spread
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    import zmq


class ParameterClient:
    """One worker's end; see the module's docstring. Not for several threads at once.

    Args:
        addresses: Of the server, "tcp://HOST:PORT", or of all of them, the first first.
        token: The server's.
        parameters: Of this worker's model, like the server's.
        worker: Number of this worker, different from the others'; one that comes back under its number takes its own place.
        extras: Tensors that go with each gradient, read when it is pushed.
        job: The server's.
        timeout_s: How long a server may be away.

    Attributes:
        facts: What the server told at the start.
        outcome: What it told in the end.

    Raises:
        UserError: If the server has another token, model or job.
        LostWorkers: If it can't be reached.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        token: str,
        parameters: Iterable[Tensor],
        *,
        worker: int = 0,
        extras: Sequence[Tensor] = (),
        job: str = "",
        timeout_s: float = 120.0,
    ) -> None:
        self.worker, self.parameters, self._extras = worker, list(parameters), list(extras)
        addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        self._shards = [[self.parameters[i] for i in own] for own in spread([p.numel() for p in self.parameters], len(addresses))]
        self._layouts, self._extras_layout = [Layout(part) for part in self._shards], Layout(self._extras)
        digest = digest_of([Layout(self.parameters), self._extras_layout], job)
        self.outcome: Mapping[str, Any] = {}
        self._context, self._connections = zmq.Context(), list[Connection]()
        try:
            for address in addresses:
                self._connections.append(Connection(self._context, address, token=token, digest=digest, worker=worker, timeout_s=timeout_s))
            self.metadata = self._connections[0].request(Kind.HELLO).facts
        except BaseException:
            self.close()
            raise

    def pull(self) -> WorkItem | None:
        """Wait for work, and put the weights that go with it into the parameters; None at the end of the run."""
        while True:
            reply = self._connections[0].request(Kind.PULL)
            if reply.status is Status.END:
                self.outcome = reply.metadata
                return None
            facts = reply.metadata
            work = WorkItem(facts["id"], self.worker, facts["version"], facts["start"], facts["num_samples"])
            replies = [reply, *(connection.request(Kind.PULL_SHARD, work.id) for connection in self._connections[1:])]
            if all(each.status is Status.WORK for each in replies):  # else a server went down meanwhile, and this work with it
                self._load(replies)
                return work

    def push(self, work: WorkItem, sum_loss: float | Tensor = 0.0) -> bool:
        """Send the gradient of a piece of work: the mean over its samples, from `p.grad`, which is cleared.

        Returns:
            Whether it was wanted: False for what came too late, or was handed out by a server that has since gone down.
        """
        packed = [
            layout.pack([torch.zeros_like(p) if p.grad is None else p.grad for p in part])
            for part, layout in zip(self._shards, self._layouts, strict=True)
        ]
        for p in self.parameters:
            p.grad = None
        sum_loss = sum_loss.item() if isinstance(sum_loss, Tensor) else sum_loss
        for connection, payload in zip(
            self._connections[1:], packed[1:], strict=True
        ):  # the first server takes it once all others have their parts
            if connection.request(Kind.PUSH_SHARD, work.id, payload=payload).status is not Status.ACCEPTED:
                return False
        payload = packed[0] + self._extras_layout.pack(self._extras)
        return self._connections[0].request(Kind.PUSH, work.id, sum_loss, payload).status is Status.ACCEPTED

    def leave(self) -> None:
        """Tell the server that this worker is gone, so that nobody waits for it."""
        self._connections[0].request(Kind.LEAVE)

    def close(self) -> None:
        """Let go of the connections; safe to call twice."""
        for connection in self._connections:
            connection.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.no_grad()
    def _load(self, replies: list[Reply]) -> None:
        for reply, part, layout in zip(replies, self._shards, self._layouts, strict=True):
            for p, weights in zip(part, layout.unpack(reply.payload, part[0].device), strict=True):
                p.copy_(weights)
