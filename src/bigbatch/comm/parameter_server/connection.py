"""A connection to a parameter server that repeats its request after each reconnect, until there is a reply."""

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
"""A peer whose machine is gone is detected after the time-out; one whose process is gone, at once."""
MAX_DISCONNECTS = 100
"""Most consecutive disconnects without a reply in between."""
COPY_BELOW_BYTES = 1 << 16
"""Messages below this size are copied, which is faster than zero-copy sending."""


class Connection:
    """A connection to one server. Not thread-safe.

    Args:
        context: The ZeroMQ context.
        address: Address of the server, "tcp://HOST:PORT".
        token: Shared secret.
        digest: Digest of model and job.
        worker: Number of this worker.
        timeout_s: How long to wait for the server.

    Raises:
        UserError: If the address is invalid.
    """

    def __init__(self, context: "zmq.Context[Any]", address: str, *, token: str, digest: bytes, worker: int, timeout_s: float) -> None:
        self.address, self.worker, self.timeout_s = address, worker, timeout_s
        self._token, self._digest, self._requests = token.encode(), digest, 0
        self._socket = context.socket(zmq.DEALER)
        for option, value_ms in {**HEARTBEATS_MS, zmq.RECONNECT_IVL: RECONNECT_MS, zmq.LINGER: 0}.items():
            self._socket.setsockopt(option, value_ms)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._connected, self._disconnected_s, self._disconnects = False, time.monotonic(), 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise UserError(f"parameter server {address}: is not a valid address ({why}); give tcp://HOST:PORT") from None

    def request(self, kind: Kind, work: int = 0, sum_loss: float = 0.0, payload: bytes = b"") -> Reply:
        """Send a request, again after each reconnect, and return the reply.

        Raises:
            UserError: If the server refuses this connection.
            LostWorkers: If the server cannot be reached within the time-out.
        """
        frames = self._send(kind, work, sum_loss, payload)
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while True:
            events = dict(poller.poll(1000))
            if self._monitor in events and self._has_disconnected():
                self._socket.send_multipart(frames, copy=len(payload) < COPY_BELOW_BYTES)
            if self._socket in events:
                reply = self._read()
                if reply is not None:
                    return reply
            timed_out = not self._connected and time.monotonic() - self._disconnected_s > self.timeout_s
            if timed_out or self._disconnects > MAX_DISCONNECTS:
                raise LostWorkers(
                    f"worker {self.worker}: no parameter server at {self.address} within {self.timeout_s:g} s; check that it is started "
                    "and can be reached from here"
                )

    def send_command(self, payload: bytes) -> None:
        """Send a command that has no reply.

        Raises:
            LostWorkers: If the connection was lost: an earlier command may not have arrived.
        """
        while self._monitor.poll(0):
            if self._has_disconnected():
                raise LostWorkers(f"lost the parameter server at {self.address}; restart all servers from the last checkpoint")
        while self._socket.poll(0):
            self._read()
        self._send(Kind.COMMAND, 0, 0.0, payload)

    def close(self) -> None:
        """Close the connection; safe to call twice."""
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

    def _has_disconnected(self) -> bool:
        """Read one event of the monitor; whether it is a disconnect, after which the request must be sent again."""
        event = recv_monitor_message(self._monitor)["event"]
        self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if not self._connected:
            self._disconnected_s, self._disconnects = time.monotonic(), self._disconnects + 1
        return not self._connected

    def _read(self) -> Reply | None:
        """Read one reply; None if it answers an earlier request."""
        try:
            reply = decode_reply([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
        except BadMessage as why:
            raise UserError(f"{self.address}: {why}; check the address") from None
        self._disconnects = 0
        if reply.status is Status.REFUSED and reply.request == 0:
            reason = reply.metadata.get("why")
            raise UserError(f"worker {self.worker}: the parameter server at {self.address} refused the connection: {reason}")
        return reply if reply.request == self._requests else None
