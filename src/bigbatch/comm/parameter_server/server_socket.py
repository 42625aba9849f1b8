"""The server's end of lines: lets in what is well-formed, and says to everything else why not."""

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
"""Requests that are read in one go."""


class ServerSocket:
    """A socket that listens, and what may be said to it.

    Args:
        address: Where to listen, "tcp://HOST:PORT"; port 0 takes a free one.
        token: Shared secret; drawn at random if left out.
        digest: Of what is trained.
        payload_bytes: For each kind of request that is taken, the exact length of its payload; -1 takes any.
        most_bytes: Longest message; longer ones end their connection before they are read. -1 for no limit.

    Attributes:
        address: Where it listens.
        token: The secret.
        traffic: Bytes of tensors received and sent, and messages refused for being malformed.

    Raises:
        UserError: If the address can't be listened at.
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
        options[zmq.ROUTER_MANDATORY] = 1  # so that what can't be delivered is known
        for option, value in {**options, **HEARTBEATS_MS}.items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise UserError(f"parameter server at {address}: can't listen there ({why}); choose another address") from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def requests(self, timeout_s: float) -> Iterator[tuple[bytes, Request]]:
        """Who asks what; waits for at most so long for the first, then takes what is there, up to a limit."""
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
        """Answer; returns whether the peer is still there. One that does not read what it asked for is not waited for."""
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
    """True about once in so many seconds.

    >>> every = Periodic(60.0)
    >>> every.due(), every.due()
    (True, False)
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self) -> bool:
        """Whether it is time again."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
