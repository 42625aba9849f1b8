"""Who makes adversarial examples while the trainer trains: another process, or another stream of the same GPU.

Both get the weights as they were when an update began, and hand back directions: one byte for each input value. What they make is what
the trainer would have made itself, bit for bit, so they change when an update ends and nothing else.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigbatch.adversarial.concurrent import Maker, Promise
from bigbatch.adversarial.fgsm import Attack, Batch, state_of
from bigbatch.core.checks import UserError

FOREVER = timedelta(days=365)
"""How long a maker waits for the next order: the trainer may be evaluating. One that dies is noticed at once, its connection breaks."""
CLOSING = timedelta(seconds=10)
"""How long a trainer that ends waits at most for what its maker still has to send."""


class RemoteMaker:
    """The trainer's hold on a maker, another rank that runs `serve_examples`.

    An order is one message after a header: the weights, the samples and what they are. It is copied first, so that training may go on,
    and sent in the background; so are the directions that come back. Everything goes through the host's memory.

    Args:
        peer: Rank of the maker.
        group: A gloo group of both.
    """

    def __init__(self, peer: int, *, group: Any = None) -> None:
        self.peer, self.group = peer, group
        self._orders: list[_Order] = []

    def maker(self, model: nn.Module) -> Maker:
        """Orders with this model's weights; RuntimeError from what waits for them, once the maker is lost."""
        return partial(self._order, model)

    def _order(self, model: nn.Module, pieces: list[Batch], number: int) -> Promise:
        if not pieces:
            return list
        self._orders = [order for order in self._orders if not order.done]
        self._orders.append(_Order(self.peer, self.group, model, pieces, number))
        return self._orders[-1].wait

    def close(self) -> None:
        """Let the maker end, whatever has happened here."""
        with contextlib.suppress(RuntimeError):
            for order in self._orders:
                order.wait(CLOSING)
        with contextlib.suppress(RuntimeError):
            _send(torch.zeros(2, dtype=torch.int64), self.peer, group=self.group).wait(CLOSING)


class _Order:
    """Directions on their way."""

    def __init__(self, peer: int, group: Any, model: nn.Module, pieces: list[Batch], number: int) -> None:
        told = {"number": number, "inputs": [_looks(x) for x, _ in pieces], "targets": [_looks(y) for _, y in pieces]}
        words = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        tensors = [*_state(model), *(x for x, _ in pieces), *(y for _, y in pieces)]
        payload = torch.cat([words, *map(_bytes, tensors)])
        header = torch.tensor([len(words), len(payload)])
        self._device, self._shapes = pieces[0][0].device, [x.shape for x, _ in pieces]
        self._received = torch.empty(sum(x.numel() for x, _ in pieces), dtype=torch.int8)
        self._receive = _receive(self._received, peer, group=group)
        self._sent = [(_send(message, peer, group=group), message) for message in (header, payload)]
        self._directions: list[Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether the directions were waited for."""
        return self._directions is not None

    def wait(self, timeout: timedelta | None = None) -> list[Tensor]:
        """The directions, as soon as they are there; the same when asked again."""
        if self._directions is None:
            for work in (*(work for work, _ in self._sent), self._receive):
                work.wait(*([] if timeout is None else [timeout]))
            flat = torch.split(self._received.to(self._device), [shape.numel() for shape in self._shapes])
            self._directions = [values.view(shape) for values, shape in zip(flat, self._shapes, strict=True)]
            self._sent = []
        return self._directions


def serve_examples(attack: Attack, peer: int, *, device: torch.device, group: Any = None) -> int:
    """Make directions for a trainer until it says that it is done.

    Args:
        attack: With a model of the same architecture; its weights become the trainer's.
        peer: Rank of the trainer.
        device: Of the model.
        group: A gloo group of both.

    Returns:
        Updates that examples were made for.

    Raises:
        RuntimeError: If the trainer is lost.
    """
    state, served = _state(attack.model), 0
    replies: list[tuple[Any, Tensor]] = []  # on their way
    while True:
        header = torch.empty(2, dtype=torch.int64)
        _receive(header, peer, group=group).wait(FOREVER)
        num_words, num_bytes = header.tolist()
        if not num_bytes:
            return served
        payload = torch.empty(num_bytes, dtype=torch.uint8)
        _receive(payload, peer, group=group).wait()
        told = json.loads(bytes(payload[:num_words].numpy()))
        parts = list(_cut(payload[num_words:], [*map(_looks, state), *told["inputs"], *told["targets"]]))
        weights, samples = parts[: len(state)], [part.to(device) for part in parts[len(state) :]]
        with torch.no_grad():
            for mine, theirs in zip(state, weights, strict=True):
                mine.copy_(theirs)
        half = len(samples) // 2
        directions = attack.directions(list(zip(samples[:half], samples[half:], strict=True)), told["number"])
        reply = torch.cat([direction.reshape(-1) for direction in directions]).cpu()
        replies = [(work, sent) for work, sent in replies if not work.is_completed()]
        replies.append((_send(reply, peer, group=group), reply))
        served += 1


class StreamMaker:
    """Makes directions on a second stream of the trainer's own GPU, from a copy of the weights.

    It saves time as far as one training pass leaves parts of the GPU idle; where passes fill it, nothing.

    Args:
        attack: What to do.
        device: A GPU.

    Raises:
        UserError: On any other device: without streams there is nothing to run beside.
    """

    def __init__(self, attack: Attack, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError(f"a second stream on {device.type}: only a GPU has streams; let other workers make the examples, or nobody")
        self.attack, self.stream = attack, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, pieces: list[Batch], number: int) -> Promise:
        """Launch, and return while it runs."""
        state = state_of(self.attack.model, copied=True)  # in the trainer's stream: before its next step
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            directions = self.attack.directions(pieces, number, state=state)
        for tensor in (*state.values(), *(t for piece in pieces for t in piece)):
            tensor.record_stream(self.stream)  # their memory is not to be used again before the second stream is done with it
        done = self.stream.record_event()

        def wait() -> list[Tensor]:
            user = torch.cuda.current_stream(self.stream.device)
            user.wait_event(done)
            for direction in directions:
                direction.record_stream(user)
            return directions

        return wait


def _send(message: Tensor, peer: int, *, group: Any) -> Any:
    return dist.isend(message, peer, group=group)  # typed as None for ranks outside of the group


def _receive(message: Tensor, peer: int, *, group: Any) -> Any:
    return dist.irecv(message, peer, group=group)


def _state(model: nn.Module) -> list[Tensor]:
    """What a maker must have of the trainer's model."""
    return [t.detach() for t in (*model.parameters(), *model.buffers())]


def _looks(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _cut(payload: Tensor, looks: Sequence[tuple[str, list[int]]]) -> Iterator[Tensor]:
    """The tensors that a flat message holds."""
    start = 0
    for name, shape in looks:
        dtype = getattr(torch, name)
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        yield payload[start:stop].clone().view(dtype).view(shape)
        start = stop
