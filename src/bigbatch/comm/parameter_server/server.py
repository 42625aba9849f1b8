"""A parameter server: it holds the weights, assigns work to workers, and collects gradients for your optimizer.

    server = ParameterServer(model.parameters(), WorkQueue(total_samples=..., global_batch=64, staleness_bound=8))
    while (update := server.collect()) is not None:    # the gradient of the next update is in p.grad
        optimizer.step()                               # any optimizer and schedule, as in any training loop
        server.publish()                               # the weights are the next version

Workers are `ParameterClient`s in other processes (or threads). `work_queue` decides who computes what, and why no update is applied twice;
`messages` defines the messages; the methods are `async_sgd`, `staleness` and `backup_workers`. Parameters can be sharded over further
servers (`shard_server`).

The transport is ZeroMQ. gloo's point-to-point calls, with a thread for each worker, are as fast (300 updates in 0.84 s against 0.93 s), but
the members of a gloo group are fixed: after a restart of a worker or server, all processes would have to form a new group. torch's RPC is
in maintenance mode, and uses pickle. ZeroMQ reconnects by itself, delivers whole messages only, and limits their size before they are
read. It does not limit the number of frames of a message, so an attacker who can reach the port can fill the server's memory: use loopback
or a trusted network.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from bigbatch.comm.parameter_server.async_sgd import Reduction, gradient_weights
from bigbatch.comm.parameter_server.messages import Kind, Layout, Reply, Request, Status, digest_of
from bigbatch.comm.parameter_server.server_socket import Periodic, ServerSocket
from bigbatch.comm.parameter_server.shard_client import ShardClient
from bigbatch.comm.parameter_server.sharding import combine_gradients
from bigbatch.comm.parameter_server.staleness import Damping, damped
from bigbatch.comm.parameter_server.update import Update
from bigbatch.comm.parameter_server.work_queue import Refused, WorkItem, WorkQueue

GRACE_S = 2.0
"""Seconds that workers have, at the end of the run, to receive its outcome."""


class ParameterServer:
    """The server of one run; see the module's docstring.

    Args:
        parameters: Parameters of the model; workers have parameters of the same shapes.
        queue: Work queue of the run.
        token: Shared secret; by default random, see `server.token`.
        address: Address to listen on, "tcp://HOST:PORT"; port 0 uses a free port, see `server.address`. Tokens and tensors are not
            encrypted, so any address but loopback needs a trusted network.
        extras: Tensors of the shapes of the additional tensors that workers send with each gradient.
        job: Description of the job; workers with another description are refused.
        metadata: Sent to each worker at its start.
        reduction: Whether an update takes the mean of its gradients, or their sum (see `equivalent_settings` in `async_sgd`).
        damping: Damping of stale gradients.
        shards: Client of the further servers; None if this is the only server.

    Raises:
        UserError: If it cannot listen on the address.
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
        metadata: Mapping[str, Any] | None = None,
        reduction: Reduction = "mean",
        damping: Damping = "none",
        shards: ShardClient | None = None,
    ) -> None:
        all_parameters = list(parameters)
        self.parameters = all_parameters if shards is None else shards.own_parameters
        self.queue, self.reduction, self.damping, self.metadata, self._shards = queue, reduction, damping, dict(metadata or {}), shards
        self._layout, self._extras_layout = Layout(self.parameters), Layout(extras)
        payload_bytes = {Kind.HELLO: 0, Kind.PULL: 0, Kind.LEAVE: 0, Kind.PUSH: self._layout.num_bytes + self._extras_layout.num_bytes}
        digest = digest_of([Layout(all_parameters), self._extras_layout], job)
        self._socket = ServerSocket(address, token=token, digest=digest, payload_bytes=payload_bytes)
        self.address, self.token, self.traffic = self._socket.address, self._socket.token, self._socket.traffic
        self._gradients: dict[int, tuple[Any, float]] = {}
        self._waiting: dict[int, tuple[bytes, int]] = {}  # by worker, its peer and its pull request
        self._peers: dict[int, bytes] = {}
        self._packed: bytes | None = None  # the weights of this version
        self._update: Update | None = None
        self._liveness_check = Periodic(max(1.0, queue.timeout_s / 100))

    def collect(self, timeout_s: float | None = None) -> Update | None:
        """Serve workers until all gradients of the next update have arrived, and set `p.grad` to their combination.

        Args:
            timeout_s: Longest wait, in seconds; None for no limit.

        Returns:
            The update; None once all samples are applied (`server.queue.done`), or after the time-out.
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
        """Make the weights the next version, clear the gradients, and assign further work."""
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
        """Handle requests, waiting up to the time-out for the first, and release the work of lost workers."""
        for peer, request in self._socket.requests(timeout_s):
            self._handle(peer, request)
        if self._liveness_check.due():
            lost = [worker for worker, peer in self._peers.items() if not self._socket.reply(peer, Reply(Status.PING, 0, {}))]
            for worker in lost:
                self._forget(worker)
            if self.queue.expire(time.monotonic()) or lost:
                self._assign_work()

    def finish(self, outcome: Mapping[str, Any] | None = None) -> None:
        """Send all workers the outcome of the run and close; a worker that does not pull in time finds no server."""
        end = time.monotonic() + GRACE_S
        outcome = dict(outcome or {})
        self._ended = True
        while self._peers and time.monotonic() < end:
            for worker, (peer, request) in list(self._waiting.items()):
                self._socket.reply(peer, Reply(Status.END, request, outcome))
                del self._waiting[worker]
                self._peers.pop(worker, None)
            self.serve(0.05)
        self.close()

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._socket.close()

    _ended = False

    def _handle(self, peer: bytes, request: Request) -> None:
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
                self._waiting[request.worker] = (peer, request.request)
            case Kind.PUSH:
                self._accept(peer, request)
        self._assign_work()

    def _accept(self, peer: bytes, request: Request) -> None:
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
        self._waiting.pop(worker, None)
        self._peers.pop(worker, None)

    def _assign_work(self) -> None:
        """Assign work items to the workers that wait for one."""
        if self.queue.done or self._ended or self._update is not None:
            return
        for worker, (peer, request) in list(self._waiting.items()):
            work = self.queue.assign(worker, time.monotonic())
            if work is None:
                continue
            del self._waiting[worker]
            if self._packed is None:
                self._packed = self._layout.pack(self.parameters)
            if self._shards is not None:
                self._shards.send(work)
            metadata = {"id": work.id, "version": work.version, "start": work.start, "num_samples": work.num_samples}
            if self._socket.reply(peer, Reply(Status.WORK, request, metadata, self._packed)):
                self.traffic["sent_bytes"] += len(self._packed)
            else:
                self.queue.release(worker)

    def _combine(self, work_items: list[WorkItem], staleness: list[int]) -> Update:
        held = [self._gradients[work.id] for work in work_items]
        undamped = gradient_weights([work.num_samples for work in work_items], self.reduction)
        factor, weights = damped(undamped, staleness, self.damping)
        boundary, num_samples = self._layout.num_bytes, sum(work.num_samples for work in work_items)
        combine_gradients(self.parameters, self._layout, [payload[:boundary] for payload, _ in held], weights)
        extras = [self._extras_layout.unpack(payload[boundary:]) for payload, _ in held]
        return Update(work_items, weights, staleness, factor, num_samples, sum(loss for _, loss in held), extras)
