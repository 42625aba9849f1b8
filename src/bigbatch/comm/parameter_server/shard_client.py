"""The first server's client of the other servers, which hold the other parameter shards."""

import contextlib
from collections.abc import Sequence
from typing import Any

import zmq
from torch import Tensor

from bigbatch.comm.parameter_server.connection import Connection
from bigbatch.comm.parameter_server.messages import Kind, Layout, decode_tree, digest_of, encode_command
from bigbatch.comm.parameter_server.sharding import shard_parameters
from bigbatch.comm.parameter_server.update import Update
from bigbatch.comm.parameter_server.work_queue import WorkItem, WorkQueue
from bigbatch.core.checks import LostWorkers


class ShardClient:
    """Connections of the first server to the other servers.

    Args:
        parameters: All parameters of the model.
        addresses: Addresses of all servers, ordered by rank.
        token: Shared secret.
        extras: As in `ParameterServer`.
        job: Description of the job.
        timeout_s: How long to wait for the other servers to start.

    Attributes:
        parameters: All parameters of the model.
        own_parameters: Parameters of the first server.
        shard_indices: For each server the indices of its parameters.
    """

    def __init__(
        self, parameters: Sequence[Tensor], addresses: Sequence[str], *, token: str, extras: Sequence[Tensor], job: str, timeout_s: float
    ) -> None:
        self.shard_indices = shard_parameters([p.numel() for p in parameters], len(addresses))
        self.parameters = list(parameters)
        self.own_parameters = [self.parameters[i] for i in self.shard_indices[0]]
        self._context = zmq.Context()
        settings: dict[str, Any] = {"token": token, "digest": digest_of([Layout(parameters), Layout(extras)], job), "timeout_s": timeout_s}
        self._connections = [Connection(self._context, address, worker=0, **settings) for address in addresses[1:]]

    def load(self, states: Sequence[Any], queue: WorkQueue) -> None:
        """Load the state of each other server; the first command."""
        for connection, state in zip(self._connections, states, strict=True):
            connection.request(Kind.COMMAND, payload=encode_command("load", nonce=queue.nonce, state=state))

    def send(self, work: WorkItem) -> None:
        """Let the other servers keep their current weights for the worker of this work item."""
        for connection in self._connections:
            connection.send_command(encode_command("send", work=work.id))

    def apply(self, update: Update, queue: WorkQueue) -> None:
        """Let the other servers apply the same update."""
        arguments = {"ids": [work.id for work in update.work_items], "weights": update.weights, "damping": update.damping}
        for connection in self._connections:
            connection.send_command(encode_command("apply", **arguments, clock=[queue.samples, queue.version], out=queue.outstanding))

    def states(self) -> list[Any]:
        """The current states of the other servers."""
        replies = [connection.request(Kind.COMMAND, payload=encode_command("state")) for connection in self._connections]
        return [decode_tree(reply.payload) for reply in replies]

    def end(self) -> None:
        """End the other servers."""
        for connection in self._connections:
            with contextlib.suppress(LostWorkers):
                connection.send_command(encode_command("end"))
            connection.close()
        self._context.term()
