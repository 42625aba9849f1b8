"""Passes over all tensors of a batch in tiles of rows and columns: AdamP's and SGDP's moments with their sums over rows, and the step."""

import triton
import triton.language as tl

from bigbatch.optim.kernels.common import adam_moments, element_pointer
from bigbatch.optim.kernels.decide import radial_coefficient
from bigbatch.optim.kernels.tables import WIDTHS

NARROW, MIDDLE = tl.constexpr(WIDTHS[0]), tl.constexpr(WIDTHS[1])
"""Columns of tiles of short rows; those of long ones are a whole block."""


@triton.jit
def _place(tile, owner, first_tile, shape, tensors):
    """Tensor of a tile, its number there, and its columns."""
    tensor = tl.load(owner + tile).to(tl.int64)
    return tensor, tile - tl.load(first_tile + tensor), tl.load(shape + 2 * tensors + tensor)


@triton.jit
def _tile(shape, tensors, tensor, number, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows and columns of a tile of a tensor, offsets of its elements, and which of them exist."""
    rows = tl.load(shape + tensor)
    length = tl.load(shape + tensors + tensor)
    across = tl.load(shape + 3 * tensors + tensor)
    row = number // across * (BLOCK // COLUMNS) + tl.arange(0, BLOCK // COLUMNS)
    column = number % across * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < length)[None, :]
    return row, row < rows, row[:, None] * length + column[None, :], there


@triton.jit
def _load(pointer, at, there):
    return tl.load(pointer + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _update(grads, m, v, first, ratio, eps, there, momentum, ADAM: tl.constexpr, NESTEROV: tl.constexpr):
    """p from moments that are up to date; zero where no element is."""
    if ADAM:
        p = tl.where(there, tl.div_rn(m, tl.sqrt_rn(v) * ratio + first * eps), 0.0)
    else:
        p = m
        if NESTEROV:
            p = grads + momentum * m
    return p


@triton.jit
def _moments_of(
    shape,
    tensors,
    tensor,
    number,
    partial,
    partials,
    w,
    g,
    m,
    v,
    first,
    ratio,
    momentum,
    rise,
    b2,
    rise_sq,
    eps,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, is_row, at, there = _tile(shape, tensors, tensor, number, COLUMNS, BLOCK)
    weights = _load(w, at, there)
    grads = _load(g, at, there)
    moment = _load(m, at, there)
    moment_sq = moment
    if ADAM:
        moment, moment_sq = adam_moments(grads, moment, _load(v, at, there), rise, b2, rise_sq, MAXIMIZE)
        tl.store(v + at, moment_sq, mask=there)
    else:
        signed = -grads if MAXIMIZE else grads
        moment = momentum * moment + rise * signed
    tl.store(m + at, moment, mask=there)
    p = _update(-grads if MAXIMIZE else grads, moment, moment_sq, first, ratio, eps, there, momentum, ADAM, NESTEROV)
    across = tl.load(shape + 3 * tensors + tensor)
    to = partial + tl.load(shape + 4 * tensors + tensor) + row * across + number % across
    tl.store(to, tl.sum(grads * weights, 1), mask=is_row)
    tl.store(to + partials, tl.sum(grads * grads, 1), mask=is_row)
    tl.store(to + 2 * partials, tl.sum(weights * weights, 1), mask=is_row)
    tl.store(to + 3 * partials, tl.sum(p * weights, 1), mask=is_row)


@triton.jit(do_not_specialize=["tensors", "tiles", "partials"])
def moments(
    addresses,
    owner,
    first_tile,
    shape,
    tensors,
    tiles,
    partial,
    partials,
    firsts,
    ratios,
    momentum,
    rise,
    b2,
    rise_sq,
    eps,
    W: tl.constexpr,
    G: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update the moments; partial[k, tile of a row]: its sums of g w, g g, w w and p w."""
    tile = tl.program_id(0).to(tl.int64)
    tensor, number, columns = _place(tile, owner, first_tile, shape, tensors)
    w = element_pointer(addresses, tensor, 0, W, False)
    g = element_pointer(addresses + tensors, tensor, 0, G, False)
    m = element_pointer(addresses + 2 * tensors, tensor, 0, tl.float32, False)
    v = m
    if ADAM:
        v = element_pointer(addresses + 3 * tensors, tensor, 0, tl.float32, False)
    first, ratio = tl.load(firsts + tensor), tl.load(ratios + tensor)
    to = tl.cast(partials, tl.int64)
    if columns == NARROW:
        _moments_of(
            shape,
            tensors,
            tensor,
            number,
            partial,
            to,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            rise,
            b2,
            rise_sq,
            eps,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            NARROW,
            BLOCK,
        )
    elif columns == MIDDLE:
        _moments_of(
            shape,
            tensors,
            tensor,
            number,
            partial,
            to,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            rise,
            b2,
            rise_sq,
            eps,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            MIDDLE,
            BLOCK,
        )
    else:
        _moments_of(
            shape,
            tensors,
            tensor,
            number,
            partial,
            to,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            rise,
            b2,
            rise_sq,
            eps,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            BLOCK,
            BLOCK,
        )


@triton.jit
def _step_of(
    shape,
    tensors,
    tensor,
    number,
    sums,
    num_rows,
    by_row,
    keep,
    lr,
    w,
    g,
    m,
    v,
    first,
    ratio,
    momentum,
    eps,
    W: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, is_row, at, there = _tile(shape, tensors, tensor, number, COLUMNS, BLOCK)
    weights = _load(w, at, there)
    moment = _load(m, at, there)
    moment_sq = moment
    grads = moment
    if ADAM:
        moment_sq = _load(v, at, there)
    if NESTEROV:
        grads = _load(g, at, there)
        if MAXIMIZE:
            grads = -grads
    p = _update(grads, moment, moment_sq, first, ratio, eps, there, momentum, ADAM, NESTEROV)
    here = sums + tl.load(shape + 5 * tensors + tensor) + row
    coefficients = radial_coefficient(tl.load(here + num_rows, mask=is_row, other=0.0), tl.load(here, mask=is_row, other=0.0), eps)
    kept = keep + lr * tl.where(by_row != 0, coefficients, 0.0)
    tl.store(w + at, (weights * kept[:, None] - lr * p).to(W), mask=there)


@triton.jit(do_not_specialize=["tensors", "tiles", "num_rows"])
def step(
    addresses,
    owner,
    first_tile,
    shape,
    tensors,
    tiles,
    sums,
    num_rows,
    by_row,
    keep,
    lrs,
    firsts,
    ratios,
    momentum,
    eps,
    W: tl.constexpr,
    G: tl.constexpr,
    ADAM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """w <- w (keep + lr c) - lr p, c of the row where rows are projected; the last tile first, which is in the cache still."""
    tile = tiles - 1 - tl.program_id(0).to(tl.int64)
    tensor, number, columns = _place(tile, owner, first_tile, shape, tensors)
    w = element_pointer(addresses, tensor, 0, W, False)
    g = element_pointer(addresses + tensors, tensor, 0, G, False)
    m = element_pointer(addresses + 2 * tensors, tensor, 0, tl.float32, False)
    v = m
    if ADAM:
        v = element_pointer(addresses + 3 * tensors, tensor, 0, tl.float32, False)
    first, ratio, lr = tl.load(firsts + tensor), tl.load(ratios + tensor), tl.load(lrs)
    rowwise, kept = tl.load(by_row + tensor), tl.load(keep + tensor)
    rows = tl.cast(num_rows, tl.int64)
    if columns == NARROW:
        _step_of(
            shape,
            tensors,
            tensor,
            number,
            sums,
            rows,
            rowwise,
            kept,
            lr,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            eps,
            W,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            NARROW,
            BLOCK,
        )
    elif columns == MIDDLE:
        _step_of(
            shape,
            tensors,
            tensor,
            number,
            sums,
            rows,
            rowwise,
            kept,
            lr,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            eps,
            W,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            MIDDLE,
            BLOCK,
        )
    else:
        _step_of(
            shape,
            tensors,
            tensor,
            number,
            sums,
            rows,
            rowwise,
            kept,
            lr,
            w,
            g,
            m,
            v,
            first,
            ratio,
            momentum,
            eps,
            W,
            ADAM,
            NESTEROV,
            MAXIMIZE,
            BLOCK,
            BLOCK,
        )
