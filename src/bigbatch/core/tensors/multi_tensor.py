"""Many tensors in one call, cut so that a piece stays in the processor's cache while several operations pass over it.

An optimizer step does little arithmetic per byte: its time is the memory that it reads and writes. On a CPU one `torch._foreach_*`
call after another would stream every tensor through memory once per operation; over *blocks* that fit the cache, only once per
block. On an accelerator the whole list is one block: its kernels want length.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**18
"""Elements of one list in a block on the CPU: 1 MiB of float32. In smaller blocks the calls cost more than the nearer cache saves."""


class Piece(NamedTuple):
    """A stretch of one flattened tensor."""

    number: int  # of the tensor in its list
    start: int
    stop: int
    is_whole: bool


def flat(tensor: Tensor) -> Tensor:
    """The tensor as a vector in the order of its memory, without a copy; channels-last tensors too.

    Raises:
        ValueError: If the tensor has gaps or overlaps in memory.
    """
    if tensor.is_contiguous():
        return tensor if tensor.ndim == 1 else tensor.view(-1)
    strides, shape = tensor.stride(), tensor.shape
    order = sorted(range(tensor.ndim), key=lambda d: (-strides[d], -shape[d]))
    return tensor.permute(order).view(-1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory, each element at a place of its own: contiguous in some order of its dimensions.

    >>> import torch
    >>> t = torch.zeros(4, 6)
    >>> is_dense(t), is_dense(t.T), is_dense(t[:, :3]), is_dense(t[:1].expand(4, 6))
    (True, True, False, False)
    """
    return tensor.is_contiguous() or not tensor.numel() or _inner_to_outer(tensor) is not None


def has_dense_rows(tensor: Tensor) -> bool:
    """Whether the tensor is dense and its rows (along the first dimension) follow each other in memory: contiguous, or channels-last.

    >>> import torch
    >>> t = torch.zeros(4, 6)
    >>> has_dense_rows(t), has_dense_rows(t.T), has_dense_rows(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    (True, False, True)
    """
    if tensor.is_contiguous() or not tensor.numel():
        return True
    dims = _inner_to_outer(tensor)
    return dims is not None and (tensor.size(0) == 1 or dims[-1] == 0)


def overlaps(tensor: Tensor) -> bool:
    """Whether elements share a place in memory, as in an expanded tensor.

    >>> import torch
    >>> overlaps(torch.zeros(1, 4).expand(3, 4)), overlaps(torch.zeros(4, 6)[:, :3]), overlaps(torch.zeros(8).as_strided((3, 2), (2, 3)))
    (True, False, False)
    """
    if tensor.is_contiguous() or not tensor.numel():
        return False
    steps = [(tensor.stride(d), tensor.size(d)) for d in range(tensor.ndim) if tensor.size(d) > 1]
    reached = 0
    for stride, size in sorted(steps):
        if stride == 0:
            return True
        if stride <= reached:  # rows lie within each other's reach: only their places can tell
            places = sum(torch.arange(size).mul_(stride).view(-1, *[1] * i) for i, (stride, size) in enumerate(steps))
            return bool(places.unique().numel() < tensor.numel())  # type: ignore[union-attr]
        reached += stride * (size - 1)
    return False


def same_layout(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with the memory order of `like`, a dense one: itself where it has it, else a copy."""
    return tensor if has_layout_of(tensor, like) else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def has_layout_of(tensor: Tensor, like: Tensor) -> bool:
    """Whether the elements of two tensors of one shape follow each other in the same order, `like` being dense."""
    if like.is_contiguous():
        return tensor.is_contiguous()
    return all(tensor.stride(d) == like.stride(d) for d in range(like.ndim) if like.size(d) > 1)


def _inner_to_outer(tensor: Tensor) -> list[int] | None:
    """Dimensions longer than one in the order of memory, the fastest first; None where there are gaps or shared places."""
    dims = sorted((d for d in range(tensor.ndim) if tensor.size(d) > 1), key=tensor.stride)
    expected = 1
    for d in dims:
        if tensor.stride(d) != expected:
            return None
        expected *= tensor.size(d)
    return dims


def blocks(sizes: tuple[int, ...], limit: int, rows: tuple[int, ...] | None = None) -> tuple[tuple[Piece, ...], ...]:
    """Cut tensors of the given sizes into blocks of at most `limit` elements (0: one block of everything).

    Args:
        sizes: Elements of each tensor.
        limit: Elements of a block.
        rows: Length of a row of each tensor, which is never cut; 1 each if left out.

    >>> [[tuple(p) for p in block] for block in blocks((2, 3, 7), 5)]
    [[(0, 0, 2, True), (1, 0, 3, True)], [(2, 0, 5, False)], [(2, 5, 7, False)]]
    """
    return _cut(sizes, limit, rows) if torch.compiler.is_compiling() else _cut_once(sizes, limit, rows)


def runs(sizes: tuple[int, ...], limit: int) -> tuple[range, ...]:
    """Consecutive whole tensors of at most `limit` elements together, or one larger one alone (0: one run of everything).

    >>> runs((2, 3, 7, 1), 5)
    (range(0, 2), range(2, 3), range(3, 4))
    """
    return _group(sizes, limit) if torch.compiler.is_compiling() else _group_once(sizes, limit)


def take(tensors: Sequence[Tensor], block: tuple[Piece, ...]) -> list[Tensor]:
    """The pieces of a block out of flat tensors."""
    return [tensors[p.number] if p.is_whole else tensors[p.number][p.start : p.stop] for p in block]


def block_limit(device: torch.device) -> int:
    """Elements of a block on a device; 0 for no cutting."""
    return BLOCK if device.type == "cpu" and not torch.compiler.is_compiling() else 0


def _cut(sizes: tuple[int, ...], limit: int, rows: tuple[int, ...] | None) -> tuple[tuple[Piece, ...], ...]:
    if not limit:
        return (tuple(Piece(i, 0, size, True) for i, size in enumerate(sizes)),)
    done: list[tuple[Piece, ...]] = []
    now: list[Piece] = []
    room = limit
    for i, size in enumerate(sizes):
        if size > room and now:
            done.append(tuple(now))
            now, room = [], limit
        if size > limit:
            row = max(rows[i], 1) if rows else 1
            length = max(limit // row, 1) * row
            done += [(Piece(i, start, min(start + length, size), size <= length),) for start in range(0, size, length)]
            continue
        now.append(Piece(i, 0, size, True))
        room -= size
    return (*done, tuple(now)) if now else tuple(done)


def _group(sizes: tuple[int, ...], limit: int) -> tuple[range, ...]:
    found: list[range] = []
    for block in blocks(sizes, limit):
        run = range(block[0].number, block[-1].number + 1)
        if not found or found[-1] != run:
            found.append(run)
    return tuple(found)


_cut_once, _group_once = lru_cache(512)(_cut), lru_cache(512)(_group)  # not under torch.compile, which looks through caches
