"""A further parameter server, which holds one shard of the parameters: whole tensors, so that any optimizer can update them.

The first server makes all decisions and sends the others a sequence of commands, which they execute in order: `send`, the current weights
are those of this work item; `apply`, update with these gradients. So a worker pulls the same version from all servers, whatever their
speed, and all servers make the same updates. A worker pushes to the first server last. If a server is lost, all servers restart from the
checkpoint of the first, which holds all shards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bigbatch.comm.parameter_server.messages import Kind, Layout, Reply, Request, Status, decode_tree, digest_of, encode_tree
from bigbatch.comm.parameter_server.server_socket import ServerSocket
from bigbatch.comm.parameter_server.sharding import combine_gradients, shard_parameters
from bigbatch.core.checks import LostWorkers
from bigbatch.core.clock import Clock
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    pass


class Command(NamedTuple):
    """What the loop of a shard server must do next."""

    kind: str  # load, apply or state
    clock: Clock = Clock()  # before an update
    damping: float = 1.0
    num_gradients: int = 0
    state: Any = None


class ShardServer:
    """A further server, which holds one shard of the parameters.

        while (command := server.next()) is not None:
            match command.kind:
                case "load": ...                        # load command.state
                case "apply": ...                       # the gradient is in p.grad: step, then server.publish()
                case "state": server.send_state(...)

    Args:
        parameters: All parameters of the model.
        rank: Rank of this server, from 1.
        addresses: Addresses of all servers, ordered by rank.
        token: Shared secret.
        extras: As in `ParameterServer`.
        job: Description of the job.

    Raises:
        UserError: If it cannot listen on its address.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rank: int,
        addresses: Sequence[str],
        *,
        token: str,
        extras: Sequence[Tensor] = (),
        job: str = "",
    ) -> None:
        self.parameters = [parameters[i] for i in shard_parameters([p.numel() for p in parameters], len(addresses))[rank]]
        self._layout = Layout(self.parameters)
        payload_bytes = {Kind.PULL_SHARD: 0, Kind.PUSH_SHARD: self._layout.num_bytes, Kind.COMMAND: -1}
        digest = digest_of([Layout(parameters), Layout(extras)], job)
        max_bytes = 16 * self._layout.num_bytes + (1 << 24)  # an optimizer's state has a few times the bytes of the weights
        self._socket = ServerSocket(addresses[rank], token=token, digest=digest, payload_bytes=payload_bytes, max_bytes=max_bytes)
        self.traffic = self._socket.traffic
        self._commands: list[tuple[bytes, Request]] = []
        self._last_command = 0
        self._nonce: int | None = None
        self._newest = 0  # id of the newest work item
        self._pulls: dict[int, tuple[bytes, int]] = {}  # by work item, the peer that waits for weights, and its request
        self._weights: dict[int, bytes] = {}  # by work item, until they are pulled
        self._outstanding: set[int] = set()  # work items whose gradients are accepted
        self._gradients: dict[int, Any] = {}
        self._packed: bytes | None = None
        self._state_request: tuple[bytes, int] = (b"", 0)

    def next(self) -> Command | None:
        """Serve workers until the first server sends a command for the loop; None at the end of the run."""
        while True:
            while self._commands:
                peer, request = self._commands.pop(0)
                command = self._execute(peer, request)
                if command == "end":
                    return None
                if isinstance(command, Command):
                    return command
            for peer, request in self._socket.requests(1.0):
                match request.kind:
                    case Kind.COMMAND:
                        self._commands.append((peer, request))
                    case Kind.PULL_SHARD:
                        self._pulls[request.work] = (peer, request.request)
                    case Kind.PUSH_SHARD:
                        self._accept(peer, request)
            self._serve_pulls()

    def publish(self) -> None:
        """Make the weights the next version, and clear the gradients."""
        for p in self.parameters:
            p.grad = None
        self._packed = None

    def send_state(self, state: Any) -> None:
        """Reply to the `state` command."""
        self._socket.reply(self._state_request[0], Reply(Status.ACCEPTED, self._state_request[1], {}, encode_tree(state)))

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._socket.close()

    def _execute(self, peer: bytes, request: Request) -> Command | str | None:
        arguments = decode_tree(request.payload)
        kind = arguments.pop("order")
        if kind == "load":
            self._last_command, self._nonce = request.request, arguments["nonce"]
            self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))
            return Command(kind, state=arguments["state"])
        if request.request != self._last_command + 1:
            raise LostWorkers(f"a parameter server missed command {self._last_command + 1}; restart all servers from the last checkpoint")
        self._last_command = request.request
        if kind == "send":
            self._packed = self._packed if self._packed is not None else self._layout.pack(self.parameters)
            self._weights[arguments["work"]], self._newest = self._packed, arguments["work"]
            self._outstanding.add(arguments["work"])
            self._serve_pulls()
        elif kind == "state":
            self._state_request = (peer, request.request)
            return Command(kind)
        elif kind == "apply":
            combine_gradients(self.parameters, self._layout, [self._gradients[id] for id in arguments["ids"]], arguments["weights"])
            out = set(arguments["out"]) - set(arguments["ids"])
            self._outstanding &= out
            for by_work in (self._weights, self._gradients):
                for id in by_work.keys() - out:
                    del by_work[id]
            return Command(kind, Clock(*arguments["clock"]), arguments["damping"], len(arguments["ids"]))
        return kind if kind == "end" else None

    def _accept(self, peer: bytes, request: Request) -> None:
        if request.work in self._outstanding:
            self._gradients[request.work] = request.payload
            self.traffic["received_bytes"] += len(request.payload)
            self._socket.reply(peer, Reply(Status.ACCEPTED, request.request, {}))
        else:
            self._socket.reply(peer, Reply(Status.REFUSED, request.request, {"why": f"work item {request.work} is not outstanding"}))

    def _serve_pulls(self) -> None:
        for id, (peer, request) in list(self._pulls.items()):
            if id in self._weights:
                packed = self._weights.pop(id)
                self.traffic["sent_bytes"] += len(packed)
                self._socket.reply(peer, Reply(Status.WORK, request, {}, packed))
            elif self._nonce is None or (id >> 32 == self._nonce and id > self._newest):
                continue  # its `send` command is still on the way
            else:
                self._socket.reply(peer, Reply(Status.REFUSED, request, {"why": f"work item {id} is not outstanding"}))
            del self._pulls[id]
