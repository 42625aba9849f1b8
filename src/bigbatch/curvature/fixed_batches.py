"""Batches that must be the same at every pass: cut into micro-batches, counted, and told apart by a checksum."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.core.checks import UserError

_ODD = -7046029254386353131  # 2^64 / golden ratio, as int64: multiples of it are spread over all bits


class Piece(NamedTuple):
    """A micro-batch."""

    inputs: Any  # tensors of n samples each, in tuples, lists or dicts
    targets: Any
    samples: int  # n
    number: int  # of the piece, from 0
    batch: int  # of the batch that it is cut from, from 0


def pieces_of(
    batches: Iterable[Any], *, micro_batch: int | None, device: torch.device, seen: Callable[[list[Tensor]], object] = lambda _: None
) -> Iterator[Piece]:
    """Batches cut to at most `micro_batch` samples and brought to a device.

    Args:
        batches: Pairs of inputs and targets.
        micro_batch: Samples of a piece; the whole batch, if None.
        device: Where pieces go.
        seen: Is given the checksums of each batch.

    Raises:
        UserError: If something is not a pair, or its tensors have no samples or not equally many.
    """
    number = 0
    for i, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UserError(f"batch {i} is a {type(batch).__name__}: must be a pair (inputs, targets)")
        tensors = list(_tensors(batch))
        counts = {len(t) if t.dim() else 0 for t in tensors}
        if len(counts) != 1 or 0 in counts:
            raise UserError(f"batch {i}: tensors of {sorted(counts)} samples; inputs and targets must have equally many, one at least")
        seen([checksum(t) for t in tensors])
        samples = counts.pop()
        step = micro_batch or samples
        for start in range(0, samples, step):
            cut = slice(start, min(start + step, samples))
            inputs, targets = (_each(part, lambda t, cut=cut: t[cut].to(device)) for part in batch)
            yield Piece(inputs, targets, cut.stop - start, number, i)
            number += 1


def checksum(tensor: Tensor) -> Tensor:
    """A number, int64, that depends on every bit and its place; equal on every machine.

    >>> a = torch.tensor([1.0, 2.0])
    >>> bool(checksum(a) == checksum(a.clone())), bool(checksum(a) == checksum(a.flip(0)))
    (True, False)
    """
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    t = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    bits = t.contiguous().view(whole[t.element_size()]).flatten().to(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device) * _ODD
    return (bits * (places | 1)).sum()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
