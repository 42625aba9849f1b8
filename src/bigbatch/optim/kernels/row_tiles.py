"""Tiles of rows and columns, over which AdamP's and SGDP's passes go: see `tables.cut_into_rows`."""

import triton
import triton.language as tl

from bigbatch.optim.kernels.tables import WIDTHS

NARROW, MIDDLE = tl.constexpr(WIDTHS[0]), tl.constexpr(WIDTHS[1])
"""Columns of tiles of short rows; those of long ones are a whole block."""


@triton.jit
def place_of_tile(tile, owner, first_tile, shape, tensors):
    """Tensor of a tile, its number there, and its columns."""
    tensor = tl.load(owner + tile).to(tl.int64)
    return tensor, tile - tl.load(first_tile + tensor), tl.load(shape + 2 * tensors + tensor)


@triton.jit
def elements_of_tile(shape, tensors, tensor, number, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows and columns of a tile of a tensor, offsets of its elements, and which of them exist."""
    rows = tl.load(shape + tensor)
    length = tl.load(shape + tensors + tensor)
    across = tl.load(shape + 3 * tensors + tensor)
    row = number // across * (BLOCK // COLUMNS) + tl.arange(0, BLOCK // COLUMNS)
    column = number % across * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < length)[None, :]
    return row, row < rows, row[:, None] * length + column[None, :], there


@triton.jit
def load_tile(pointer, at, there):
    """Elements of a tile as float32; zero where there are none."""
    return tl.load(pointer + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def update_of(grads, m, v, first, ratio, eps, there, momentum, ADAM: tl.constexpr, NESTEROV: tl.constexpr):
    """Update p from moments that are up to date; zero where no element is."""
    if ADAM:
        p = tl.where(there, tl.div_rn(m, tl.sqrt_rn(v) * ratio + first * eps), 0.0)
    else:
        p = m
        if NESTEROV:
            p = grads + momentum * m
    return p
