"""A line to a parameter server: ask, and ask again after a new connection, until there is an answer."""

import os
import time
from typing import Any

from bigbatch.comm.parameter_server.messages import BadMessage, Kind, Reply, Request, Status, decode_reply, encode_request
from bigbatch.core.checks import LostWorkers, UserError
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    import zmq
    from zmq.utils.monitor import recv_monitor_message


RECONNECT_MS = 100
HEARTBEATS_MS = {zmq.HEARTBEAT_IVL: 5_000, zmq.HEARTBEAT_TIMEOUT: 30_000}
"""A peer whose machine is gone is noticed after the second; one whose process is gone, at once."""
MAX_DISCONNECTS = 100
"""Connections that may be lost, one after the other, without a word having come through any."""
COPY_BELOW_BYTES = 1 << 16
"""Up to so many bytes, copying is faster than keeping track of who owns them."""


class Connection:
    """One connection. Not for several threads at once.

    Args:
        context: Of ZeroMQ.
        address: Of the server, "tcp://HOST:PORT".
        token: The server's.
        digest: Of what is trained.
        worker: Number of this end.
        timeout_s: How long the server may be away.

    Raises:
        UserError: If the address is none.
    """

    def __init__(self, context: "zmq.Context[Any]", address: str, *, token: str, digest: bytes, worker: int, timeout_s: float) -> None:
        self.address, self.worker, self.timeout_s = address, worker, timeout_s
        self._token, self._digest, self._requests = token.encode(), digest, 0
        self._socket = context.socket(zmq.DEALER)
        for option, value_ms in {**HEARTBEATS_MS, zmq.RECONNECT_IVL: RECONNECT_MS, zmq.LINGER: 0}.items():
            self._socket.setsockopt(option, value_ms)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._connected, self._gone_since, self._losses = False, time.monotonic(), 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise UserError(f"parameter server {address}: is not an address ({why}); give tcp://HOST:PORT") from None

    def request(self, kind: Kind, work: int = 0, sum_loss: float = 0.0, payload: bytes = b"") -> Reply:
        """The answer to a request, asked again after each new connection.

        Raises:
            UserError: If the server refuses this end altogether.
            LostWorkers: If it stays away.
        """
        frames = self._send(kind, work, sum_loss, payload)
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while True:
            events = dict(poller.poll(1000))
            if self._monitor in events and self._lost():
                self._socket.send_multipart(frames, copy=len(payload) < COPY_BELOW_BYTES)
            if self._socket in events:
                reply = self._read()
                if reply is not None:
                    return reply
            away = not self._connected and time.monotonic() - self._gone_since > self.timeout_s
            if away or self._losses > MAX_DISCONNECTS:
                raise LostWorkers(
                    f"worker {self.worker}: no parameter server at {self.address} within {self.timeout_s:g} s; is it started, and can it "
                    "be reached from here?"
                )

    def send_command(self, payload: bytes) -> None:
        """Give an order that needs no answer.

        Raises:
            LostWorkers: If the connection was lost: what was told before may not have been heard.
        """
        while self._monitor.poll(0):
            if self._lost():
                raise LostWorkers(f"lost the parameter server at {self.address}; all servers must start again, from the last checkpoint")
        while self._socket.poll(0):
            self._read()
        self._send(Kind.COMMAND, 0, 0.0, payload)

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close(linger=500 if self._connected else 0)

    def _send(self, kind: Kind, work: int, sum_loss: float, payload: bytes) -> list[Any]:
        self._requests += 1
        request = Request(kind, self.worker, self._requests, work, sum_loss, payload)
        frames = encode_request(request, token=self._token, digest=self._digest)
        self._socket.send_multipart(frames, copy=len(payload) < COPY_BELOW_BYTES)
        return frames

    def _lost(self) -> bool:
        """Whether the news is that the connection was lost: then what was asked may be lost too."""
        event = recv_monitor_message(self._monitor)["event"]
        self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if not self._connected:
            self._gone_since, self._losses = time.monotonic(), self._losses + 1
        return not self._connected

    def _read(self) -> Reply | None:
        """The answer to the newest request; None if it is of an earlier one."""
        try:
            reply = decode_reply([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
        except BadMessage as why:
            raise UserError(f"{self.address}: {why}; check the address") from None
        self._losses = 0
        if reply.status is Status.REFUSED and reply.request == 0:
            raise UserError(f"worker {self.worker}: the parameter server at {self.address} refused it: {reply.metadata.get('why')}")
        return reply if reply.request == self._requests else None
