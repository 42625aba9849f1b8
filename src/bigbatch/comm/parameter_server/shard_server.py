"""Parameters spread over several servers, whole tensors each, so that any optimizer works on its part as it would on all.

The first server decides everything and tells the others in one sequence of orders, which they carry out one by one: *send* the weights as
they are now to whoever fetches them for this work, *apply* these gradients. So a worker reads one version from all of them, whatever
their speed, and an update is the same everywhere. A gradient reaches the first server only after the others have their parts of it. If a
server is lost, all start again from the checkpoint of the first, which holds everybody's part.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.comm.parameter_server.connection import Connection
from bigbatch.comm.parameter_server.messages import BadMessage, Kind, Layout, Reply, Request, Status, digest_of, pack_tree, unpack_tree
from bigbatch.comm.parameter_server.server_socket import ServerSocket
from bigbatch.comm.parameter_server.work_queue import WorkItem, WorkQueue
from bigbatch.core.checks import LostWorkers, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    import zmq


if TYPE_CHECKING:
    from bigbatch.comm.parameter_server.server import Update

SKELETON_BYTES = 4  # of the length of an order's skeleton


def spread(sizes: Sequence[int], num_servers: int) -> list[list[int]]:
    """Which tensors are whose: the largest first, each to the server that has least.

    Args:
        sizes: Numbers in each tensor.
        num_servers: Servers; no more than tensors.

    Returns:
        For each server the indices of its tensors, ascending.

    Raises:
        UserError: If a server would have nothing.

    >>> spread([784 * 256, 256, 256 * 128, 128, 1280, 10], 2)
    [[0], [1, 2, 3, 4, 5]]
    """
    if not 1 <= num_servers <= len(sizes):
        raise UserError(f"{num_servers} servers for {len(sizes)} tensors: each must have one at least; start fewer servers")
    own: list[list[int]] = [[] for _ in range(num_servers)]
    loads = [0] * num_servers
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(num_servers), key=lambda server: (loads[server], len(own[server])))
        own[least].append(i)
        loads[least] += sizes[i]
    return [sorted(indices) for indices in own]


@torch.no_grad()
def combine(parameters: Sequence[Tensor], layout: Layout, payloads: Iterable[Any], weights: Sequence[float]) -> None:
    """Leave the weighted sum of packed gradients in `p.grad`."""
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for payload, weight in zip(payloads, weights, strict=True):
        for p, gradient in zip(parameters, layout.unpack(payload, parameters[0].device), strict=True):
            assert p.grad is not None
            p.grad.add_(gradient, alpha=weight)


class Parts:
    """The first server's hold on the others.

    Args:
        parameters: Of the whole model.
        addresses: Of all servers, the first first.
        token: Shared secret.
        extras: As of the first server.
        job: What is trained.
        timeout_s: How long the others may take to start.

    Attributes:
        own: The first server's parameters.
    """

    def __init__(
        self, parameters: Sequence[Tensor], addresses: Sequence[str], *, token: str, extras: Sequence[Tensor], job: str, timeout_s: float
    ) -> None:
        self.shard_indices = spread([p.numel() for p in parameters], len(addresses))
        self.parameters = list(parameters)
        self.own_parameters = [self.parameters[i] for i in self.shard_indices[0]]
        self._context = zmq.Context()
        settings: dict[str, Any] = {"token": token, "digest": digest_of([Layout(parameters), Layout(extras)], job), "timeout_s": timeout_s}
        self._connections = [Connection(self._context, address, worker=0, **settings) for address in addresses[1:]]

    def load(self, states: Sequence[Any], queue: WorkQueue) -> None:
        """Give each of the others its state, before anything else."""
        for connection, state in zip(self._connections, states, strict=True):
            connection.request(Kind.COMMAND, payload=_order("load", nonce=queue.nonce, state=state))

    def send(self, work: WorkItem) -> None:
        """The weights as they are now go with this work."""
        for connection in self._connections:
            connection.send_command(_order("send", work=work.id))

    def apply(self, update: "Update", queue: WorkQueue) -> None:
        """Make the same update of the same gradients."""
        facts = {"ids": [work.id for work in update.work_items], "weights": update.weights, "damping": update.damping}
        for connection in self._connections:
            connection.send_command(_order("apply", **facts, clock=[queue.samples, queue.version], out=queue.outstanding))

    def states(self) -> list[Any]:
        """What the others have become."""
        replies = [connection.request(Kind.COMMAND, payload=_order("state")) for connection in self._connections]
        return [_read(reply.payload) for reply in replies]

    def end(self) -> None:
        """Let the others go."""
        for connection in self._connections:
            with contextlib.suppress(LostWorkers):
                connection.send_command(_order("end"))
            connection.close()
        self._context.term()


class Command(NamedTuple):
    """What a part server's owner must do."""

    kind: str  # load, apply or state
    clock: Clock = Clock()  # before an update
    damping: float = 1.0
    num_gradients: int = 0
    state: Any = None


class ShardServer:
    """A further server, which has some of the parameters.

        while (order := server.next()) is not None:
            match order.kind:
                case "load": ...                        # take up order.state
                case "apply": ...                       # the gradient is in p.grad: step, then server.publish()
                case "state": server.send_state(...)

    Args:
        parameters: Of the whole model.
        number: Of this server, from 1.
        addresses: Of all servers.
        token: Shared secret.
        extras: As of the first server.
        job: What is trained.

    Raises:
        UserError: If its address can't be listened at.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        number: int,
        addresses: Sequence[str],
        *,
        token: str,
        extras: Sequence[Tensor] = (),
        job: str = "",
    ) -> None:
        self.parameters = [parameters[i] for i in spread([p.numel() for p in parameters], len(addresses))[number]]
        self._layout = Layout(self.parameters)
        payload_bytes = {Kind.PULL_SHARD: 0, Kind.PUSH_SHARD: self._layout.num_bytes, Kind.COMMAND: -1}
        digest = digest_of([Layout(parameters), Layout(extras)], job)
        max_bytes = 16 * self._layout.num_bytes + (1 << 24)  # an optimizer's state has a few times the bytes of the weights
        self._socket = ServerSocket(addresses[number], token=token, digest=digest, payload_bytes=payload_bytes, max_bytes=max_bytes)
        self.traffic = self._socket.traffic
        self._orders: list[tuple[bytes, Request]] = []
        self._last_order = 0
        self._nonce: int | None = None
        self._newest = 0  # id of the newest work heard of
        self._fetches: dict[int, tuple[bytes, int]] = {}  # by work, who waits for its weights
        self._weights: dict[int, bytes] = {}  # by work, until they are fetched
        self._awaited: set[int] = set()  # work whose gradient would be taken
        self._gradients: dict[int, Any] = {}
        self._packed: bytes | None = None
        self._to_answer: tuple[bytes, int] = (b"", 0)

    def next(self) -> Command | None:
        """Serve workers until the first server wants something of this one's owner; None at the end of the run."""
        while True:
            while self._orders:
                peer, request = self._orders.pop(0)
                order = self._carry_out(peer, request)
                if order == "end":
                    return None
                if isinstance(order, Command):
                    return order
            for peer, request in self._socket.requests(1.0):
                match request.kind:
                    case Kind.COMMAND:
                        self._orders.append((peer, request))
                    case Kind.PULL_SHARD:
                        self._fetches[request.work] = (peer, request.request)
                    case Kind.PUSH_SHARD:
                        self._take(peer, request)
            self._serve_fetches()

    def publish(self) -> None:
        """The weights are those of the next version; gradients are cleared."""
        for p in self.parameters:
            p.grad = None
        self._packed = None

    def send_state(self, state: Any) -> None:
        """Answer the order for the state."""
        self._socket.reply(self._to_answer[0], Reply(Status.ACCEPTED, self._to_answer[1], {}, b"".join(_frames(state))))

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._socket.close()

    def _carry_out(self, peer: bytes, request: Request) -> Command | str | None:
        order = _read(request.payload)
        kind = order.pop("order")
        if kind == "load":
            self._last_order, self._nonce = request.request, order["nonce"]
            self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))
            return Command(kind, state=order["state"])
        if request.request != self._last_order + 1:
            raise LostWorkers(f"a part server missed order {self._last_order + 1}; all servers must start again, from the last checkpoint")
        self._last_order = request.request
        if kind == "send":
            self._packed = self._packed if self._packed is not None else self._layout.pack(self.parameters)
            self._weights[order["work"]], self._newest = self._packed, order["work"]
            self._awaited.add(order["work"])
            self._serve_fetches()
        elif kind == "state":
            self._to_answer = (peer, request.request)
            return Command(kind)
        elif kind == "apply":
            combine(self.parameters, self._layout, [self._gradients[id] for id in order["ids"]], order["weights"])
            out = set(order["out"]) - set(order["ids"])
            self._awaited &= out
            for by_work in (self._weights, self._gradients):
                for id in by_work.keys() - out:
                    del by_work[id]
            return Command(kind, Clock(*order["clock"]), order["damping"], len(order["ids"]))
        return kind if kind == "end" else None

    def _take(self, peer: bytes, request: Request) -> None:
        if request.work in self._awaited:
            self._gradients[request.work] = request.payload
            self.traffic["received_bytes"] += len(request.payload)
            self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))
        else:
            self._socket.reply(peer, Reply(Status.REFUSED, request.request, {"why": f"work {request.work}: is not out"}))

    def _serve_fetches(self) -> None:
        for id, (peer, request) in list(self._fetches.items()):
            if id in self._weights:
                packed = self._weights.pop(id)
                self.traffic["sent_bytes"] += len(packed)
                self._socket.reply(peer, Reply(Status.WORK, request, {}, packed))
            elif self._nonce is None or (id >> 32 == self._nonce and id > self._newest):
                continue  # the order to send it is still on its way
            else:
                self._socket.reply(peer, Reply(Status.REFUSED, request, {"why": f"work {id}: is not out"}))
            del self._fetches[id]


def _order(kind: str, **facts: Any) -> bytes:
    return b"".join(_frames({"order": kind, **facts}))


def _frames(tree: Any) -> list[bytes]:
    skeleton, data = pack_tree(tree)
    return [len(skeleton).to_bytes(SKELETON_BYTES, "big"), skeleton, data]


def _read(payload: Any) -> Any:
    length = int.from_bytes(bytes(payload[:SKELETON_BYTES]), "big") + SKELETON_BYTES
    if not SKELETON_BYTES < length <= len(payload):
        raise BadMessage("not an order of a parameter server")
    return unpack_tree(payload[SKELETON_BYTES:length], payload[length:])
