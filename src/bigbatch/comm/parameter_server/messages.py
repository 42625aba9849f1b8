"""What workers and parameter servers say to each other: fixed headers and raw tensors. Nothing that is read is ever executed.

A request is three frames, and is refused unless each of them is right to the byte:

    token                           shared secret, compared in constant time
    header                          magic, kind, worker, request, work, sum of losses, digest of what is trained
    payload                         the bytes of tensors whose shapes and types both sides know; empty where the kind has none

An answer is three frames too: its kind and the request that it answers, a JSON object, a payload. Integers are in network order, tensors
in the order of the machine (little-endian on all that torch supports).
"""

import hashlib
import hmac
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.core.devices import CPU

HEADER = struct.Struct("!6sBIIQd32s")
REPLY_HEADER = struct.Struct("!6sBI")
MAGIC = b"bbps-1"
MAX_JSON_BYTES = 1 << 16
MAX_TOKEN_BYTES = 256


class Kind(IntEnum):
    """What a request asks for."""

    HELLO = 1  # I am here, and anew: forget what you gave me before
    PULL = 2  # weights, and which samples to use them on
    PUSH = 3  # the gradient of one piece of work
    LEAVE = 4  # I am gone
    FETCH = 5  # of a further server: its part of the weights that go with a piece of work
    PART = 6  # to a further server: its part of a gradient
    ORDER = 7  # of the first server to a further one


class Status(IntEnum):
    """What an answer says."""

    WELCOME = 1
    WORK = 2
    TAKEN = 3
    REFUSED = 4
    END = 5
    STILL_HERE = 6  # nothing: whether it can be sent tells whether the worker is there


class BadMessage(ValueError):
    """A message that no worker of this run would send."""


class Request(NamedTuple):
    """A request, known to be well-formed."""

    kind: Kind
    worker: int
    request: int  # number of the request, echoed by its answer
    work: int = 0
    sum_loss: float = 0.0
    payload: Any = b""  # a buffer


class Reply(NamedTuple):
    """An answer, known to be well-formed."""

    status: Status
    request: int
    facts: dict[str, Any]
    payload: Any = b""  # a buffer


class Layout:
    """Shapes and types of a list of tensors, and how their bytes follow each other.

    Args:
        tensors: The list; only shapes and types are kept.

    >>> layout = Layout([torch.zeros(2, 3), torch.zeros((), dtype=torch.int64)])
    >>> layout.num_bytes, [t.tolist() for t in layout.unpack(layout.pack([torch.ones(2, 3), torch.tensor(7)]))]
    (32, [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], 7])
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.specs = [(tuple(t.shape), t.dtype) for t in tensors]
        self.sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.specs]
        self.num_bytes = sum(self.sizes)

    def pack(self, tensors: Sequence[Tensor]) -> bytes:
        """The bytes of tensors of these shapes and types, from any device: those of one GPU in one copy, which waits for it."""
        assert [(tuple(t.shape), t.dtype) for t in tensors] == self.specs
        pieces = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
        if len(devices := {piece.device for piece in pieces}) == 1 and CPU not in devices:
            pieces = [torch.cat(pieces)]
        return b"".join(piece.cpu().numpy().data for piece in pieces)

    def unpack(self, data: Any, device: torch.device = CPU) -> list[Tensor]:
        """Tensors of these shapes and types, in memory of their own; to a GPU all go in one copy.

        Raises:
            BadMessage: If there are more or fewer bytes than they have.
        """
        if len(data) != self.num_bytes:
            raise BadMessage(f"{len(data):,} bytes of tensors: must be {self.num_bytes:,}")
        empty = torch.empty(0, dtype=torch.uint8)
        flat, at, tensors = (torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.num_bytes else empty).to(device), 0, []
        for (shape, dtype), size in zip(self.specs, self.sizes, strict=True):
            piece = flat[at : at + size] if size else empty.to(device)
            tensors.append((piece.clone() if at % dtype.itemsize else piece).view(dtype).reshape(shape))
            at += size
        return tensors


def digest_of(layouts: Iterable[Layout], job: str) -> bytes:
    """32 bytes that differ where tensors or the job's description do."""
    return hashlib.sha256(repr(([layout.specs for layout in layouts], job)).encode()).digest()


def encode_request(request: Request, *, token: bytes, digest: bytes) -> list[Any]:
    """The frames of a request."""
    header = HEADER.pack(MAGIC, request.kind, request.worker, request.request, request.work, request.sum_loss, digest)
    return [token, header, request.payload]


def decode_request(frames: Sequence[Any], *, token: bytes, digest: bytes, payload_bytes: Mapping[Kind, int]) -> Request:
    """The request in the frames.

    Args:
        frames: As received; anything at all.
        token: The secret that the sender must know.
        digest: Of what this server trains.
        payload_bytes: For each kind of request that this server knows, the exact length of its payload.

    Raises:
        BadMessage: In words, if anything about it is wrong.
    """
    if len(frames) != 3:
        raise BadMessage(f"{len(frames)} frames: must be 3")
    secret, header, payload = frames
    if not hmac.compare_digest(bytes(secret[: len(token) + 1]), token):
        raise BadMessage("wrong token: give the one of the server (BIGBATCH_TOKEN)")
    if len(header) != HEADER.size:
        raise BadMessage(f"a header of {len(header)} bytes: must be {HEADER.size}")
    magic, number, worker, request, work, sum_loss, theirs = HEADER.unpack(bytes(header))
    if magic != MAGIC:
        raise BadMessage("another protocol: start all with the same version of bigbatch")
    if number not in {int(kind) for kind in payload_bytes}:
        raise BadMessage(f"kind {number}: is not one that this server knows")
    if not hmac.compare_digest(theirs, digest):
        raise BadMessage("another model, recipe or version than the server's: start all by the same command and with the same versions")
    kind = Kind(number)
    if len(payload) != payload_bytes[kind] and payload_bytes[kind] >= 0:
        raise BadMessage(f"{kind.name} with {len(payload):,} bytes: must be {payload_bytes[kind]:,}")
    return Request(kind, worker, request, work, sum_loss, payload)


def encode_reply(reply: Reply) -> list[Any]:
    """The frames of an answer."""
    return [REPLY_HEADER.pack(MAGIC, reply.status, reply.request), json.dumps(reply.metadata).encode(), reply.payload]


def decode_reply(frames: Sequence[Any]) -> Reply:
    """The answer in the frames.

    Raises:
        BadMessage: If it is none.
    """
    if len(frames) != 3 or len(frames[0]) != REPLY_HEADER.size or len(frames[1]) > MAX_JSON_BYTES:
        raise BadMessage("not an answer of a parameter server")
    magic, status, request = REPLY_HEADER.unpack(bytes(frames[0]))
    try:
        facts = json.loads(bytes(frames[1]))
        if magic != MAGIC or not isinstance(facts, dict):
            raise ValueError
        return Reply(Status(status), request, facts, frames[2])
    except (ValueError, RecursionError):
        raise BadMessage("not an answer of a parameter server") from None


def pack_tree(tree: Any) -> list[bytes]:
    """Nested dictionaries, lists and tuples of tensors and plain values as two frames: their shape as JSON, and the bytes of the tensors.

    >>> unpack_tree(*pack_tree({"state": {0: {"step": torch.tensor(3.0), "on": True}}, "betas": (0.5, None)}))
    {'state': {0: {'step': tensor(3.), 'on': True}}, 'betas': (0.5, None)}
    """
    tensors: list[Tensor] = []

    def skeleton(node: Any) -> Any:
        match node:
            case Tensor():
                tensors.append(node)
                return {"t": [list(node.shape), str(node.dtype).removeprefix("torch.")]}
            case Mapping():
                return {"d": [[key, skeleton(value)] for key, value in node.items()]}
            case list() | tuple():
                return {"l" if isinstance(node, list) else "u": [skeleton(value) for value in node]}
            case None | bool() | int() | float() | str():
                return node
        raise TypeError(f"{type(node).__name__} in a state: only tensors and plain values can be sent to another server")

    return [json.dumps(skeleton(tree)).encode(), Layout(tensors).pack(tensors)]


def unpack_tree(skeleton: Any, data: Any) -> Any:
    """The inverse of `pack_tree`.

    Raises:
        BadMessage: If it is none of its results.
    """
    shapes: list[Tensor] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            ((kind, content),) = node.items()
            if kind == "t":
                shapes.append(torch.empty(content[0], dtype=getattr(torch, content[1]), device="meta"))
            for child in content if kind in "lu" else [pair[1] for pair in content] if kind == "d" else []:
                collect(child)

    def build(node: Any, tensors: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == "t":
            return next(tensors)
        if kind == "d":
            return {key: build(value, tensors) for key, value in content}
        values = [build(value, tensors) for value in content]
        return values if kind == "l" else tuple(values)

    try:
        root = json.loads(bytes(skeleton))
        collect(root)
        return build(root, iter(Layout(shapes).unpack(data)))
    except (ValueError, TypeError, AttributeError, RuntimeError, StopIteration) as error:
        raise BadMessage(f"not a state of a parameter server: {error}") from None
