"""Messages between workers and parameter servers: fixed headers and raw tensors. Nothing in a message is ever executed.

A request has three frames, and is refused unless each of them is exactly as specified:

    token                           shared secret, compared in constant time
    header                          magic, kind, worker, request, work item, sum of losses, digest of model and job
    payload                         the bytes of tensors whose shapes and types both sides know; empty for some kinds

A reply has three frames too: a header with its status and the request that it answers, a JSON object, and a payload. Integers are in
network byte order, tensors in the byte order of the machine (little-endian on all machines that torch supports).
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

from bigbatch.core.hardware.devices import CPU

HEADER = struct.Struct("!6sBIIQd32s")
REPLY_HEADER = struct.Struct("!6sBI")
MAGIC = b"bbps-1"
MAX_JSON_BYTES = 1 << 16
MAX_TOKEN_BYTES = 256
LENGTH_BYTES = 4  # of the length prefix of an encoded tree


class Kind(IntEnum):
    """The kind of a request."""

    HELLO = 1  # register a worker; releases the work of an earlier process of the same number
    PULL = 2  # pull weights and a work item
    PUSH = 3  # push the gradient of a work item
    LEAVE = 4  # deregister a worker
    PULL_SHARD = 5  # to a further server: pull its shard of the weights of a work item
    PUSH_SHARD = 6  # to a further server: push its shard of a gradient
    COMMAND = 7  # from the first server to a further one


class Status(IntEnum):
    """The status of a reply."""

    WELCOME = 1
    WORK = 2
    ACCEPTED = 3
    REFUSED = 4
    END = 5
    PING = 6  # whether it can be sent shows whether the worker is connected


class BadMessage(ValueError):
    """A malformed message, or one of another job."""


class Request(NamedTuple):
    """A well-formed request."""

    kind: Kind
    worker: int
    request: int  # number of the request, repeated in the reply
    work: int = 0
    sum_loss: float = 0.0
    payload: Any = b""  # a buffer


class Reply(NamedTuple):
    """A well-formed reply."""

    status: Status
    request: int
    metadata: dict[str, Any]
    payload: Any = b""  # a buffer


class Layout:
    """Shapes and types of a list of tensors, which are packed one after the other.

    Args:
        tensors: The tensors; only their shapes and types are stored.

    >>> layout = Layout([torch.zeros(2, 3), torch.zeros((), dtype=torch.int64)])
    >>> layout.num_bytes, [t.tolist() for t in layout.unpack(layout.pack([torch.ones(2, 3), torch.tensor(7)]))]
    (32, [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], 7])
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.specs = [(tuple(t.shape), t.dtype) for t in tensors]
        self.sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.specs]
        self.num_bytes = sum(self.sizes)

    def pack(self, tensors: Sequence[Tensor]) -> bytes:
        """The bytes of tensors of these shapes and types, from any device; from a GPU in one copy, which synchronises."""
        assert [(tuple(t.shape), t.dtype) for t in tensors] == self.specs
        flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
        if len(devices := {t.device for t in flat}) == 1 and CPU not in devices:
            flat = [torch.cat(flat)]
        return b"".join(t.cpu().numpy().data for t in flat)

    def unpack(self, data: Any, device: torch.device = CPU) -> list[Tensor]:
        """Tensors of these shapes and types, in new memory; to a GPU in one copy.

        Raises:
            BadMessage: If the number of bytes is wrong.
        """
        if len(data) != self.num_bytes:
            raise BadMessage(f"{len(data):,} bytes of tensors: must be {self.num_bytes:,}")
        empty = torch.empty(0, dtype=torch.uint8)
        flat, at, tensors = (torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.num_bytes else empty).to(device), 0, []
        for (shape, dtype), size in zip(self.specs, self.sizes, strict=True):
            values = flat[at : at + size] if size else empty.to(device)
            tensors.append((values.clone() if at % dtype.itemsize else values).view(dtype).reshape(shape))
            at += size
        return tensors


def digest_of(layouts: Iterable[Layout], job: str) -> bytes:
    """SHA-256 of the shapes and types of tensors and the description of the job."""
    return hashlib.sha256(repr(([layout.specs for layout in layouts], job)).encode()).digest()


def encode_request(request: Request, *, token: bytes, digest: bytes) -> list[Any]:
    """The frames of a request."""
    header = HEADER.pack(MAGIC, request.kind, request.worker, request.request, request.work, request.sum_loss, digest)
    return [token, header, request.payload]


def decode_request(frames: Sequence[Any], *, token: bytes, digest: bytes, payload_bytes: Mapping[Kind, int]) -> Request:
    """The request in the frames.

    Args:
        frames: As received; not trusted.
        token: Shared secret.
        digest: Digest of the server's model and job.
        payload_bytes: For each supported kind of request, the exact length of its payload; -1 for any length.

    Raises:
        BadMessage: If the request is malformed, with the reason.
    """
    if len(frames) != 3:
        raise BadMessage(f"{len(frames)} frames: must be 3")
    secret, header, payload = frames
    if not hmac.compare_digest(bytes(secret[: len(token) + 1]), token):
        raise BadMessage("wrong token: use the server's token (BIGBATCH_TOKEN)")
    if len(header) != HEADER.size:
        raise BadMessage(f"a header of {len(header)} bytes: must be {HEADER.size}")
    magic, number, worker, request, work, sum_loss, theirs = HEADER.unpack(bytes(header))
    if magic != MAGIC:
        raise BadMessage("another protocol: start all processes with the same version of bigbatch")
    if number not in {int(kind) for kind in payload_bytes}:
        raise BadMessage(f"kind {number}: is not supported by this server")
    if not hmac.compare_digest(theirs, digest):
        raise BadMessage("another model, recipe or version than the server's: start all with the same command and the same versions")
    kind = Kind(number)
    if len(payload) != payload_bytes[kind] and payload_bytes[kind] >= 0:
        raise BadMessage(f"{kind.name} with {len(payload):,} bytes: must be {payload_bytes[kind]:,}")
    return Request(kind, worker, request, work, sum_loss, payload)


def encode_reply(reply: Reply) -> list[Any]:
    """The frames of a reply."""
    return [REPLY_HEADER.pack(MAGIC, reply.status, reply.request), json.dumps(reply.metadata).encode(), reply.payload]


def decode_reply(frames: Sequence[Any]) -> Reply:
    """The reply in the frames.

    Raises:
        BadMessage: If the frames are not a reply.
    """
    if len(frames) != 3 or len(frames[0]) != REPLY_HEADER.size or len(frames[1]) > MAX_JSON_BYTES:
        raise BadMessage("not a reply of a parameter server")
    magic, status, request = REPLY_HEADER.unpack(bytes(frames[0]))
    try:
        metadata = json.loads(bytes(frames[1]))
        if magic != MAGIC or not isinstance(metadata, dict):
            raise ValueError
        return Reply(Status(status), request, metadata, frames[2])
    except (ValueError, RecursionError):
        raise BadMessage("not a reply of a parameter server") from None


def pack_tree(tree: Any) -> list[bytes]:
    """Nested dictionaries, lists and tuples of tensors and plain values as two frames: their structure as JSON, and the tensors' bytes.

    >>> unpack_tree(*pack_tree({"state": {0: {"step": torch.tensor(3.0), "on": True}}, "betas": (0.5, None)}))
    {'state': {0: {'step': tensor(3.), 'on': True}}, 'betas': (0.5, None)}
    """
    tensors: list[Tensor] = []

    def structure(node: Any) -> Any:
        match node:
            case Tensor():
                tensors.append(node)
                return {"t": [list(node.shape), str(node.dtype).removeprefix("torch.")]}
            case Mapping():
                return {"d": [[key, structure(value)] for key, value in node.items()]}
            case list() | tuple():
                return {"l" if isinstance(node, list) else "u": [structure(value) for value in node]}
            case None | bool() | int() | float() | str():
                return node
        raise TypeError(f"{type(node).__name__} in a state: only tensors and plain values can be sent to another server")

    return [json.dumps(structure(tree)).encode(), Layout(tensors).pack(tensors)]


def unpack_tree(structure: Any, data: Any) -> Any:
    """The inverse of `pack_tree`.

    Raises:
        BadMessage: If the frames are not a packed tree.
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
        root = json.loads(bytes(structure))
        collect(root)
        return build(root, iter(Layout(shapes).unpack(data)))
    except (ValueError, TypeError, AttributeError, RuntimeError, StopIteration) as error:
        raise BadMessage(f"not a state of a parameter server: {error}") from None


def encode_tree(tree: Any) -> bytes:
    """Nested dictionaries, lists and tuples of tensors and plain values as one payload."""
    structure, data = pack_tree(tree)
    return b"".join([len(structure).to_bytes(LENGTH_BYTES, "big"), structure, data])


def decode_tree(payload: Any) -> Any:
    """The inverse of `encode_tree`.

    Raises:
        BadMessage: If the payload is not an encoded tree.
    """
    length = int.from_bytes(bytes(payload[:LENGTH_BYTES]), "big") + LENGTH_BYTES
    if not LENGTH_BYTES < length <= len(payload):
        raise BadMessage("not a command of a parameter server")
    return unpack_tree(payload[LENGTH_BYTES:length], payload[length:])


def encode_command(kind: str, **arguments: Any) -> bytes:
    """The payload of a command of the first server to a further one."""
    return encode_tree({"order": kind, **arguments})
