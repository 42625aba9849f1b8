r"""The projection of AdamP and SGDP: take out of an update what only makes scale-invariant weights longer.

For a tensor of two or more dimensions, as rows (one per output channel) and, failing that, as one vector:
    if max over rows |cos(g, w)| < delta / sqrt(length of a row):     the weights look scale-invariant
        p <- p - w^ (w^ . p),   w^ = w / (|w| + eps)
The test uses the gradient g, the projection the update p. Since it is linear in w, it is never carried out on p: the weights are
multiplied by 1 + lr (w^ . p) / (|w| + eps) instead, row by row, in the same pass that decays them. Momentum is never touched.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.core.tensors.sharding import max_over_shards, sharded_axes, sum_over_shards


class RowSums(NamedTuple):
    """Of every row of several tensors, one after the other: sums over its elements. Shape (rows of all tensors,) each."""

    gw: Tensor
    gg: Tensor
    ww: Tensor


class Radial(NamedTuple):
    """What is to be taken out, and from which tensors."""

    coefficients: Tensor | None  # (rows of all tensors,): c with projected p = p - c w; None where nothing is taken out anywhere
    projected: Tensor  # (tensors,), bool


def row_sums(weight: Tensor, grad: Tensor) -> RowSums:
    """Sums over each row of (rows, length) tensors."""
    norm = torch.linalg.vector_norm
    return RowSums(torch.linalg.vecdot(grad, weight), norm(grad, dim=1).square(), norm(weight, dim=1).square())


def radial(
    sums: RowSums, dots: Callable[[], Tensor], *, rows: Sequence[int], lengths: Sequence[int], delta: float, eps: float, where: Any = None
) -> Radial:
    """Decide, for several tensors at once, whether to project rows, the whole layer, or nothing.

    Args:
        sums: Of this rank's part of every row.
        dots: w . p of this rank's part of every row, shape (rows of all tensors,). On a CPU, where a look at the decision waits for
            nothing, only called if there is something to take out.
        rows: Rows of each tensor that this rank holds.
        lengths: Elements of a whole row of each tensor.
        delta: Threshold of the cosine before the division by sqrt(dimension).
        eps: Added to |w|; least norm in the cosine.
        where: Layout over ranks (see `bigbatch.core.tensors.sharding`).

    Returns:
        Coefficients of this rank's rows, and the decision for each tensor (the same on every rank).

    >>> sums = RowSums(torch.zeros(2), torch.ones(2), torch.tensor([4.0, 1.0]))
    >>> radial(sums, lambda: torch.tensor([2.0, 3.0]), rows=[2], lengths=[3], delta=0.1, eps=0.0)  # g is at right angles to both rows
    Radial(coefficients=tensor([0.5000, 3.0000]), projected=tensor([True]))
    """
    device, dtype = sums.gw.device, sums.gw.dtype
    across_rows = sharded_axes(where, dims=[0])
    within_rows = [axis for axis in sharded_axes(where) if axis not in across_rows]
    constants = _constants if torch.compiler.is_compiling() else _constants_once
    owner, count, length, places = constants(tuple(rows), tuple(lengths), device, dtype)

    def by_tensor(values: Tensor) -> Tensor:
        return sum_over_shards(over_rows(values, places, torch.sum), where, axes=across_rows)

    sums = RowSums(*sum_over_shards(torch.stack(sums), where, axes=within_rows))
    worst = over_rows(_cosine(sums, eps).unsqueeze(0), places, torch.amax)[0]
    worst = max_over_shards(worst, where, axes=across_rows)
    layer = RowSums(*by_tensor(torch.stack(sums)))
    if across_rows:
        count = sum_over_shards(count.clone(), where, axes=across_rows)
    by_row = worst < delta / length.sqrt()
    by_layer = _cosine(layer, eps) < delta / (length * count).sqrt()
    projected = by_row | by_layer
    if device.type == "cpu" and not torch.compiler.is_compiling() and not projected.any():
        return Radial(None, projected)
    wp = sum_over_shards(dots(), where, axes=within_rows)
    chosen = torch.where(by_layer, _coefficient(by_tensor(wp.unsqueeze(0))[0], layer.ww, eps), 0)
    return Radial(torch.where(by_row[owner], _coefficient(wp, sums.ww, eps), chosen[owner]), projected)


def over_rows(values: Tensor, places: tuple[Tensor, ...], reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce the rows of each tensor to one value, in a fixed order: by gathers, since scattered additions of a GPU come in any order.

    Args:
        values: Of the rows of all tensors, one tensor after the other, shape (values, rows).
        places: From `_places`.
        reduce: `torch.sum`, or `torch.amax` of values that are not negative.

    Returns:
        Shape (values, tensors).
    """
    if not places:
        return reduce(values, dim=1, keepdim=True)
    for index in places:
        filled = torch.nn.functional.pad(values, (0, 1))  # the zero that stands for rows which are not there
        values = reduce(filled.index_select(1, index.view(-1)).view(len(values), *index.shape), dim=2)
    return values


def _places(rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Where the rows of each tensor lie: in one step, or in two where tensors of many rows would leave too much empty for the rest.

    Returns:
        For each step the indices of what is reduced to one value, shape (values, terms); the number of all stands for none. No step for
        one tensor alone.
    """
    most = max(*rows, 1)
    if rows == (most,):
        return ()
    if len(rows) * most <= 4 * sum(rows) + 1024:
        return (_filled(rows, most, device),)
    width = math.isqrt(most - 1) + 1
    parts = [min(width, count - start) for count in rows for start in range(0, count, width)]
    num_parts = [-(-count // width) for count in rows]
    return _filled(parts, width, device), _filled(num_parts, max(num_parts), device)


def _filled(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Consecutive numbers in rows of the given lengths, filled up with the number after the last."""
    count, at = torch.tensor(counts).unsqueeze(1), torch.arange(width)
    index = torch.where(at < count, count.cumsum(0) - count + at, sum(counts))
    return index.to(device)


def _constants(
    rows: tuple[int, ...], lengths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Tensor that each row belongs to, rows of each tensor, length of its rows, and where the rows of each lie."""
    count = torch.tensor(rows, device=device)
    owner = torch.repeat_interleave(torch.arange(len(rows), device=device), count, output_size=sum(rows))
    return owner, count, torch.tensor(lengths, device=device, dtype=dtype), _places(rows, device)


_constants_once = lru_cache(1024)(_constants)  # sending them to a device at every step would wait for it


def _cosine(sums: RowSums, eps: float) -> Tensor:
    floor = max(eps, math.ulp(0.0))
    return sums.gw.abs() / (sums.gg.sqrt().clamp_min(floor) * sums.ww.sqrt().clamp_min(floor))


def _coefficient(wp: Tensor, ww: Tensor, eps: float) -> Tensor:
    norm = ww.sqrt() + eps
    return torch.where(norm > 0, wp / norm.square(), 0)
