"""A parameter server: it holds the weights, hands out work, and gathers gradients for the optimizer of whoever runs it.

    server = ParameterServer(model.parameters(), WorkQueue(total_samples=..., global_batch=64, staleness_bound=8))
    while (update := server.collect()) is not None:    # the gradient of the next update is in p.grad
        optimizer.step()                               # any optimizer, any schedule: a loop like any other
        server.publish()                               # its weights are the next version

Workers are `ParameterClient`s in other processes (or threads). What is decided, and why no update is ever applied twice, is in `ledger`;
what may be said is in `messages`; the methods are `async_sgd`, `staleness` and `backup_workers`. Parameters can be spread over further
servers (`part_server`).

The transport is ZeroMQ. gloo's point-to-point, with a thread for each worker, was tried and is as fast (300 updates in 0.84 s against
0.93 s), but the members of a gloo group are fixed: for a worker that comes back, or a server, all would have to form a new one. torch's
RPC is in maintenance mode, and pickles. ZeroMQ reconnects by itself, takes messages whole or not at all, and bounds their size before they
are read. What it does not bound is how many frames a message has, so a stranger who can reach the port can fill the server's memory: hence
loopback, or a network that you trust.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bigbatch.comm.parameter_server.async_sgd import Reduction, gradient_weights
from bigbatch.comm.parameter_server.messages import Kind, Layout, Reply, Request, Status, digest_of
from bigbatch.comm.parameter_server.server_socket import Periodic, ServerSocket
from bigbatch.comm.parameter_server.shard_server import Parts, combine
from bigbatch.comm.parameter_server.staleness import Damping, damped
from bigbatch.comm.parameter_server.work_queue import Refused, WorkItem, WorkQueue

GRACE_S = 2.0
"""Seconds that workers have, in the end, to hear that it is the end."""


class Update(NamedTuple):
    """What an update is made of."""

    work_items: list[WorkItem]  # by their place in the run
    weights: list[float]  # of their gradients
    staleness: list[int]
    damping: float  # factor of the rate
    num_samples: int
    sum_loss: float
    extras: list[list[Tensor]]  # of each work, whatever else its worker sent


class ParameterServer:
    """The server of one run; see the module's docstring.

    Args:
        parameters: Those of the model; workers have the same.
        ledger: Of the run.
        token: Shared secret; drawn at random if left out, and then found in `server.token`.
        address: Where to listen, "tcp://HOST:PORT"; port 0 takes a free one, found in `server.address`. Anything but loopback is open to
            the network: tokens and tensors travel as they are, so that is for networks that you trust.
        extras: Tensors like those that each gradient is accompanied by.
        job: What is trained, in any words; workers with other words are refused.
        facts: Told to each worker at its start.
        reduction: Whether an update is the mean of its gradients, or their sum (see `matched` in `async_sgd`).
        damping: What becomes of stale gradients.
        parts: The further servers, over which the parameters are spread; None for this one alone.

    Raises:
        UserError: If the address can't be listened at.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        queue: WorkQueue,
        *,
        token: str | None = None,
        address: str = "tcp://127.0.0.1:0",
        extras: Sequence[Tensor] = (),
        job: str = "",
        facts: Mapping[str, Any] | None = None,
        reduction: Reduction = "mean",
        damping: Damping = "none",
        shards: Parts | None = None,
    ) -> None:
        everything = list(parameters)
        self.parameters = everything if shards is None else shards.own_parameters
        self.queue, self.reduction, self.damping, self.metadata, self._shards = queue, reduction, damping, dict(facts or {}), shards
        self._layout, self._extras_layout = Layout(self.parameters), Layout(extras)
        payload_bytes = {Kind.HELLO: 0, Kind.PULL: 0, Kind.LEAVE: 0, Kind.PUSH: self._layout.num_bytes + self._extras_layout.num_bytes}
        digest = digest_of([Layout(everything), self._extras_layout], job)
        self._socket = ServerSocket(address, token=token, digest=digest, payload_bytes=payload_bytes)
        self.address, self.token, self.traffic = self._socket.address, self._socket.token, self._socket.traffic
        self._gradients: dict[int, tuple[Any, float]] = {}
        self._parked: dict[int, tuple[bytes, int]] = {}  # worker to its address and its request for work
        self._peers: dict[int, bytes] = {}
        self._packed: bytes | None = None  # the weights of this version
        self._update: Update | None = None
        self._look = Periodic(max(1.0, queue.timeout_s / 100))

    def collect(self, timeout_s: float | None = None) -> Update | None:
        """Serve workers until the next update has its gradients, and leave their combination in `p.grad`.

        Args:
            timeout_s: Give up after so many seconds; None waits for as long as it takes.

        Returns:
            None once every sample is applied, or when time is up: `server.ledger.done` tells.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.queue.done:
            if ready := self.queue.ready():
                self._update = self._combine([work for work, _ in ready], [tau for _, tau in ready])
                return self._update
            left_s = 1.0 if end is None else min(1.0, end - time.monotonic())
            if left_s < 0:
                return None
            self.serve(left_s)
        return None

    def publish(self) -> None:
        """The weights are those of the next version; gradients are cleared."""
        assert self._update is not None, "publish without collect"
        for p in self.parameters:
            p.grad = None
        if self._shards is not None:
            self._shards.apply(self._update, self.queue)
        self.queue.mark_applied()
        self._update = self._packed = None
        self._gradients = {id: held for id, held in self._gradients.items() if self.queue.is_pending(id)}
        self._assign_work()

    def serve(self, timeout_s: float) -> None:
        """Answer what has come, waiting for at most so long for the first of it, and miss who is gone."""
        for peer, request in self._socket.requests(timeout_s):
            self._answer(peer, request)
        if self._look.due():
            gone = [worker for worker, peer in self._peers.items() if not self._socket.reply(peer, Reply(Status.PING, 0, {}))]
            for worker in gone:
                self._forget(worker)
            if self.queue.expire(time.monotonic()) or gone:
                self._assign_work()

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Tell workers that this is the end, and what came of it; those that do not ask in time will find nobody."""
        end = time.monotonic() + GRACE_S
        told = dict(facts or {})
        self._ended = True
        while self._peers and time.monotonic() < end:
            for worker, (peer, request) in list(self._parked.items()):
                self._socket.reply(peer, Reply(Status.END, request, told))
                del self._parked[worker]
                self._peers.pop(worker, None)
            self.serve(0.05)
        self.close()

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._socket.close()

    _ended = False

    def _answer(self, peer: bytes, request: Request) -> None:
        match request.kind:
            case Kind.HELLO:
                self._forget(request.worker)
                self._peers[request.worker] = peer
                self._socket.reply(peer, Reply(Status.WELCOME, request.request, self.metadata))
            case Kind.LEAVE:
                self._forget(request.worker)
                self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))
            case Kind.PULL:
                self._peers[request.worker] = peer
                self._parked[request.worker] = (peer, request.request)
            case Kind.PUSH:
                self._take(peer, request)
        self._assign_work()

    def _take(self, peer: bytes, request: Request) -> None:
        try:
            self.queue.accept(request.work)
        except Refused as why:
            self._socket.reply(peer, Reply(Status.REFUSED, request.request, {"why": str(why)}))
            return
        self._gradients[request.work] = (request.payload, request.sum_loss)
        self.traffic["received_bytes"] += len(request.payload)
        self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))

    def _forget(self, worker: int) -> None:
        self.queue.release(worker)
        self._parked.pop(worker, None)
        self._peers.pop(worker, None)

    def _assign_work(self) -> None:
        """Work for those who wait for it, as long as there is some."""
        if self.queue.done or self._ended or self._update is not None:
            return
        for worker, (peer, request) in list(self._parked.items()):
            work = self.queue.assign(worker, time.monotonic())
            if work is None:
                continue
            del self._parked[worker]
            if self._packed is None:
                self._packed = self._layout.pack(self.parameters)
            if self._shards is not None:
                self._shards.send(work)
            facts = {"id": work.id, "version": work.version, "start": work.start, "num_samples": work.num_samples}
            if self._socket.reply(peer, Reply(Status.WORK, request, facts, self._packed)):
                self.traffic["sent_bytes"] += len(self._packed)
            else:
                self.queue.release(worker)

    def _combine(self, work_items: list[WorkItem], staleness: list[int]) -> Update:
        held = [self._gradients[work.id] for work in work_items]
        undamped = gradient_weights([work.num_samples for work in work_items], self.reduction)
        factor, weights = damped(undamped, staleness, self.damping)
        boundary, num_samples = self._layout.num_bytes, sum(work.num_samples for work in work_items)
        combine(self.parameters, self._layout, [payload[:boundary] for payload, _ in held], weights)
        extras = [self._extras_layout.unpack(payload[boundary:]) for payload, _ in held]
        return Update(work_items, weights, staleness, factor, num_samples, sum(loss for _, loss in held), extras)
