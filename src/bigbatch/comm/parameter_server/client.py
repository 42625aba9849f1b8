"""A worker of a parameter server: pull weights and a range of samples, compute the gradient, push it.

    with ParameterClient(addresses, token, model.parameters(), worker=0) as client:
        while (work := client.pull()) is not None:    # the weights are in the model
            losses = ...                              # of samples work.start to work.start + work.num_samples of the run
            losses.mean().backward()
            client.push(work, losses.sum())           # sends p.grad, the mean gradient over these samples, and clears it

With local steps it pushes how far they went, which stands for a gradient (see `decoupled_diloco`):

            pulled = [p.detach().clone() for p in model.parameters()]
            ...                                       # several updates of an optimizer of the worker's own
            client.push(work, sum_loss, displacement(pulled, list(model.parameters())))

After a disconnect, the client reconnects and repeats its request; the server detects repeated requests. If the server does not come back
within the time-out, `pull` and `push` raise `LostWorkers`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from bigbatch.comm.parameter_server.connection import Connection
from bigbatch.comm.parameter_server.messages import Kind, Layout, Reply, Status, digest_of
from bigbatch.comm.parameter_server.sharding import shard_parameters
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    import zmq


class ParameterClient:
    """The client of one worker; see the module's docstring. Not thread-safe.

    Args:
        addresses: Address of the server, "tcp://HOST:PORT", or of all servers, ordered by rank.
        token: Shared secret.
        parameters: Parameters of this worker's model, of the same shapes as the server's.
        worker: Unique number of this worker; a restarted worker uses the same number again.
        extras: Additional tensors that are sent with each gradient, read when it is pushed.
        job: Description of the job, the same as the server's.
        timeout_s: How long to wait for a server.

    Attributes:
        metadata: The server's metadata, received at the start.
        outcome: The outcome of the run, received at its end.

    Raises:
        UserError: If the server has another token, model or job.
        LostWorkers: If the server cannot be reached.
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
        self._indices = shard_parameters([p.numel() for p in self.parameters], len(addresses))
        self._shards = [[self.parameters[i] for i in shard] for shard in self._indices]
        self._layouts, self._extras_layout = [Layout(shard) for shard in self._shards], Layout(self._extras)
        digest = digest_of([Layout(self.parameters), self._extras_layout], job)
        self.outcome: Mapping[str, Any] = {}
        self._context, self._connections = zmq.Context(), list[Connection]()
        try:
            for address in addresses:
                self._connections.append(Connection(self._context, address, token=token, digest=digest, worker=worker, timeout_s=timeout_s))
            self.metadata = self._connections[0].request(Kind.HELLO).metadata
        except BaseException:
            self.close()
            raise

    def pull(self) -> WorkItem | None:
        """Wait for a work item and copy the server's weights into the parameters; None at the end of the run."""
        while True:
            reply = self._connections[0].request(Kind.PULL)
            if reply.status is Status.END:
                self.outcome = reply.metadata
                return None
            item = reply.metadata
            work = WorkItem(item["id"], self.worker, item["version"], item["start"], item["num_samples"])
            replies = [reply, *(connection.request(Kind.PULL_SHARD, work.id) for connection in self._connections[1:])]
            if all(each.status is Status.WORK for each in replies):  # else a server has restarted, and this work item is obsolete
                self._load(replies)
                return work

    def push(self, work: WorkItem, sum_loss: float | Tensor = 0.0, gradient: Sequence[Tensor] | None = None) -> bool:
        """Send the gradient of a work item, the mean over its samples, and clear `p.grad`.

        Args:
            work: The item.
            sum_loss: Sum of the losses of its samples.
            gradient: One tensor for each parameter; `p.grad` if left out.

        Returns:
            Whether the server accepted it: False if it is late, or if the server has restarted since it assigned the item.
        """
        if gradient is None:
            gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        packed = [layout.pack([gradient[i] for i in shard]) for shard, layout in zip(self._indices, self._layouts, strict=True)]
        for p in self.parameters:
            p.grad = None
        sum_loss = sum_loss.item() if isinstance(sum_loss, Tensor) else sum_loss
        # the first server comes last: it accepts the gradient once all other servers have their shards of it
        for connection, payload in zip(self._connections[1:], packed[1:], strict=True):
            if connection.request(Kind.PUSH_SHARD, work.id, payload=payload).status is not Status.ACCEPTED:
                return False
        payload = packed[0] + self._extras_layout.pack(self._extras)
        return self._connections[0].request(Kind.PUSH, work.id, sum_loss, payload).status is Status.ACCEPTED

    def leave(self) -> None:
        """Deregister this worker, so that the server does not wait for it."""
        self._connections[0].request(Kind.LEAVE)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        for connection in self._connections:
            connection.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.no_grad()
    def _load(self, replies: list[Reply]) -> None:
        for reply, shard, layout in zip(replies, self._shards, self._layouts, strict=True):
            for p, weights in zip(shard, layout.unpack(reply.payload, shard[0].device), strict=True):
                p.copy_(weights)
