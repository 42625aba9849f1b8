"""AdamP's and SGDP's first pass: moments, and the sums over rows that decide on the projection."""

import triton
import triton.language as tl

from bigbatch.optim.kernels.common import adam_moments, element_pointer
from bigbatch.optim.kernels.row_tiles import MIDDLE, NARROW, elements_of_tile, load_tile, place_of_tile, update_of


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
    row, is_row, at, there = elements_of_tile(shape, tensors, tensor, number, COLUMNS, BLOCK)
    weights = load_tile(w, at, there)
    grads = load_tile(g, at, there)
    moment = load_tile(m, at, there)
    moment_sq = moment
    if ADAM:
        moment, moment_sq = adam_moments(grads, moment, load_tile(v, at, there), rise, b2, rise_sq, MAXIMIZE)
        tl.store(v + at, moment_sq, mask=there)
    else:
        signed = -grads if MAXIMIZE else grads
        moment = momentum * moment + rise * signed
    tl.store(m + at, moment, mask=there)
    p = update_of(-grads if MAXIMIZE else grads, moment, moment_sq, first, ratio, eps, there, momentum, ADAM, NESTEROV)
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
    tensor, number, columns = place_of_tile(tile, owner, first_tile, shape, tensors)
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
            shape, tensors, tensor, number, partial, to, w, g, m, v, first, ratio, momentum, rise, b2, rise_sq, eps,
            ADAM, NESTEROV, MAXIMIZE, NARROW, BLOCK
        )  # fmt: skip
    elif columns == MIDDLE:
        _moments_of(
            shape, tensors, tensor, number, partial, to, w, g, m, v, first, ratio, momentum, rise, b2, rise_sq, eps,
            ADAM, NESTEROV, MAXIMIZE, MIDDLE, BLOCK
        )  # fmt: skip
    else:
        _moments_of(
            shape, tensors, tensor, number, partial, to, w, g, m, v, first, ratio, momentum, rise, b2, rise_sq, eps,
            ADAM, NESTEROV, MAXIMIZE, BLOCK, BLOCK
        )  # fmt: skip
