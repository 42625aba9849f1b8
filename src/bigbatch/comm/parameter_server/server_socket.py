"""The socket of a server: yields well-formed requests, and refuses all others with the reason."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from bigbatch.comm.parameter_server.connection import COPY_BELOW_BYTES, HEARTBEATS_MS
from bigbatch.comm.parameter_server.messages import (
    HEADER,
    MAX_TOKEN_BYTES,
    BadMessage,
    Kind,
    Reply,
    Request,
    Status,
    decode_request,
    encode_reply,
)
from bigbatch.core.checks import UserError
from bigbatch.core.extras import needed

with needed("a parameter server", extra="parameter-server"):
    import zmq


MAX_REQUESTS_PER_POLL = 64
"""Most requests that are read at once."""


class ServerSocket:
    """A listening socket that checks requests.

    Args:
        address: Address to listen on, "tcp://HOST:PORT"; port 0 uses a free port.
        token: Shared secret; random by default.
        digest: Digest of model and job.
        payload_bytes: For each supported kind of request, the exact length of its payload; -1 for any length.
        most_bytes: Longest message; the connection of a longer one is closed before it is read. -1 for no limit.

    Attributes:
        address: Address on which it listens.
        token: Shared secret.
        traffic: Bytes of tensors received and sent, and the number of malformed messages.

    Raises:
        UserError: If it cannot listen on the address.
    """

    def __init__(
        self, address: str, *, token: str | None, digest: bytes, payload_bytes: Mapping[Kind, int], max_bytes: int | None = None
    ) -> None:
        self.token = token or secrets.token_hex(32)
        self.traffic: Counter[str] = Counter(received_bytes=0, sent_bytes=0, malformed=0)
        self._digest, self._payload_bytes = digest, payload_bytes
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        limit = max_bytes if max_bytes is not None else max(*payload_bytes.values(), HEADER.size, MAX_TOKEN_BYTES)
        options = {zmq.MAXMSGSIZE: limit, zmq.RCVHWM: MAX_REQUESTS_PER_POLL, zmq.LINGER: 0}
        options[zmq.ROUTER_MANDATORY] = 1  # so that sending to a lost peer raises an error
        for option, value in {**options, **HEARTBEATS_MS}.items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise UserError(f"parameter server at {address}: cannot listen there ({why}); use another address") from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def requests(self, timeout_s: float) -> Iterator[tuple[bytes, Request]]:
        """Yield requests with their peers: wait for the first up to the time-out, then read those that have arrived, up to a limit."""
        if not self._socket.poll(int(1000 * timeout_s)):
            return
        for _ in range(MAX_REQUESTS_PER_POLL):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer, settings = frames[0].bytes, {"token": self.token.encode(), "digest": self._digest}
            try:
                yield peer, decode_request([frame.buffer for frame in frames[1:]], payload_bytes=self._payload_bytes, **settings)
            except BadMessage as why:
                self.traffic["malformed"] += 1
                self.reply(peer, Reply(Status.REFUSED, 0, {"why": str(why)}))

    def reply(self, peer: bytes, reply: Reply) -> bool:
        """Send a reply without waiting for the peer to read it; returns whether the peer is still connected."""
        try:
            self._socket.send_multipart([peer, *encode_reply(reply)], zmq.NOBLOCK, copy=len(reply.payload) < COPY_BELOW_BYTES)
        except zmq.Again:
            return True
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._socket.close(linger=500)
        self._context.term()


class Periodic:
    """A timer that is due once per period.

    >>> timer = Periodic(60.0)
    >>> timer.due(), timer.due()
    (True, False)
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self) -> bool:
        """Whether the period has passed; starts the next one if so."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
