"""Tables on the device that tell a kernel which tensors it walks over: it is given the table, not a list of tensors.

A table of addresses has one row for each list (weights, gradients, ...) and one column for each tensor. Tensors are cut into *chunks*, one
for each program of a kernel; a table says to which tensor a chunk belongs. Addresses are copied from pinned memory, which waits for
nothing, and only when they have changed: gradients often move, the rest seldom.
"""

from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.core.hardware import kernels
from bigbatch.optim.base import buffers
from bigbatch.optim.batches import Batch

NUM_TABLES = 64
"""Tables of addresses that are kept: a few for each batch of an optimizer, some kilobytes each."""


class Chunks(NamedTuple):
    """How the tensors of a batch are cut."""

    owner: Tensor  # (chunks,), int32: the tensor of each chunk
    first: Tensor  # (tensors + 1,), int64: the first chunk of each tensor, and the end
    sizes: Tensor  # (tensors,), int64: elements of each tensor
    num: int  # chunks


class Rows(NamedTuple):
    """How tensors are cut into tiles of some rows and some columns each, and where the sums of a tile go."""

    owner: Tensor  # (tiles,), int32: the tensor of each tile
    first: Tensor  # (tensors + 1,), int64: the first tile of each tensor, and the end
    shape: Tensor  # (6, tensors), int64: rows, elements of a row, columns of a tile, tiles across a row, first partial sum, first row
    num: int  # tiles
    partials: int  # rows times the tiles across them, of all tensors
    rows: int  # of all tensors
    matrices: Chunks  # blocks of rows of the tensors that can be projected; others have none


class Table(NamedTuple):
    """What a kernel reads beside the tensors themselves."""

    addresses: Tensor  # (lists, tensors), int64
    aligned: bool  # whether every tensor begins at a multiple of 16 bytes, so that loads may be wide
    cut: Any  # Chunks or Rows


def cut_into_chunks(sizes: tuple[int, ...], length: int, device: torch.device) -> Chunks:
    """Chunks of `length` elements; the last of a tensor may be shorter, an empty tensor has none.

    >>> chunks = cut_into_chunks((5, 0, 8, 9), 4, torch.device("cpu"))
    >>> chunks.owner.tolist(), chunks.first.tolist(), chunks.num
    ([0, 0, 2, 2, 3, 3, 3], [0, 2, 2, 4, 7], 7)
    """
    counts = torch.tensor([-(-size // length) for size in sizes])
    owner = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), counts)
    first = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=first[1:])
    return Chunks(_sent(owner, device), _sent(first, device), _sent(torch.tensor(sizes), device), len(owner))


WIDTHS = (16, 128, 1024)
"""Columns of a tile: the least that holds a row, or the largest."""
ROWS_IN_BLOCK = 16
"""Rows of which one program takes the sums together."""


def cut_into_rows(shapes: tuple[tuple[int, int, bool], ...], device: torch.device) -> Rows:
    """Tiles of at most WIDTHS[-1] elements, of whole rows where these are short.

    Args:
        shapes: Of each tensor its rows, the elements of a row, and whether it can be projected.
        device: For the tables.

    >>> rows = cut_into_rows(((100, 10, True), (2, 1500, True), (1, 7, False)), torch.device("cpu"))
    >>> rows.num, rows.shape.T.tolist()
    (7, [[100, 10, 16, 1, 0, 0], [2, 1500, 1024, 2, 100, 100], [1, 7, 16, 1, 104, 102]])
    """
    columns: list[tuple[int, ...]] = []
    tiles: list[int] = []
    partials = rows = 0
    for count, length, _ in shapes:
        width = next((w for w in WIDTHS if length <= w), WIDTHS[-1])
        across = -(-length // width)
        columns.append((count, length, width, across, partials, rows))
        tiles.append(-(-count // (WIDTHS[-1] // width)) * across)
        partials += count * across
        rows += count
    cut = cut_into_chunks(tuple(tiles), 1, device)
    matrices = cut_into_chunks(tuple(count if projects else 0 for count, _, projects in shapes), ROWS_IN_BLOCK, device)
    shape = _sent(torch.tensor(columns).T.contiguous(), device)
    return Rows(cut.owner, cut.first, shape, cut.num, partials, rows, matrices)


@lru_cache(NUM_TABLES)
def _cut_once(sizes: Any, length: int, device: torch.device, stream: int) -> Chunks | Rows:  # noqa: ARG001 each stream has tables of its own
    return cut_into_chunks(sizes, length, device) if length else cut_into_rows(sizes, device)


_tables: OrderedDict[Any, tuple[Table, int]] = OrderedDict()
_captured: dict[int, Table] = {}


def table_of(batch: Batch, names: tuple[str, ...], *, length: int = 0, shapes: tuple[tuple[int, int, bool], ...] = ()) -> Table | None:
    """The table of a batch: weights, gradients and the named state, cut into chunks of `length` elements, or into rows of `shapes`.

    Nothing can be sent to the device while a CUDA graph is captured. A table that an earlier step has sent can be used there, and is kept
    from then on, since replays read it.

    Returns:
        None where a graph is being captured and these tensors' addresses were not sent before.
    """
    device, lists = batch.params[0].device, 2 + len(names)
    addresses = _addresses(batch, names)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    table: Table | None
    seen, table, sent_on = batch.memo.get("table", ((), None, 0))
    key = None
    if seen != addresses:
        key = (device, addresses, lists, length, shapes or _sizes(batch))
        table, sent_on = _tables.get(key, (None, 0))
    if kernels.is_capturing(device):
        if table is not None:
            _captured[id(table)] = table
        return table
    if table is None or sent_on != stream:  # another stream would not wait for the copy
        cut = _cut_once(shapes or _sizes(batch), length, device, stream)
        aligned = not any(address % 16 for address in addresses)
        table = Table(_sent(torch.tensor(addresses).view(lists, -1), device), aligned, cut)
    batch.memo["table"] = addresses, table, stream
    if key is not None:
        _tables[key] = (table, stream)
        _tables.move_to_end(key)
        while len(_tables) > NUM_TABLES:
            _tables.popitem(last=False)
    return table


def _addresses(batch: Batch, names: tuple[str, ...]) -> tuple[int, ...]:
    """Of all tensors of the table, list after list; those of gradients are looked up, the others as long as the batch is the same."""
    if "addresses" not in batch.memo:
        of_state = tuple(t.data_ptr() for name in names for t in buffers(batch, name))
        batch.memo["addresses"] = tuple(p.data_ptr() for p in batch.params), of_state
    of_params, of_state = batch.memo["addresses"]
    return (*of_params, *map(Tensor.data_ptr, batch.grads), *of_state)


def _sizes(batch: Batch) -> tuple[int, ...]:
    if "sizes" not in batch.memo:
        batch.memo["sizes"] = tuple(p.numel() for p in batch.params)
    sizes: tuple[int, ...] = batch.memo["sizes"]
    return sizes


def on_device(value: float | Tensor, device: torch.device) -> Tensor:
    """A setting as a float32 tensor of one element on the device; nothing waits.

    >>> on_device(0.5, torch.device("cpu"))
    tensor([0.5000])
    """
    if not isinstance(value, Tensor):
        return torch.full((1,), value, dtype=torch.float32, device=device)
    if value.device == device and value.dtype == torch.float32:
        return value.reshape(1)
    return torch.ones(1, dtype=torch.float32, device=device) * value


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the allocator of pinned memory keeps the source until it is made."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
