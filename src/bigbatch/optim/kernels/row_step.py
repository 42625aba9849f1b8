"""AdamP's and SGDP's last pass: it makes the update again from its moments, projects, decays and steps."""

import triton
import triton.language as tl

from bigbatch.optim.kernels.common import element_pointer
from bigbatch.optim.kernels.decide import radial_coefficient
from bigbatch.optim.kernels.row_tiles import MIDDLE, NARROW, elements_of_tile, load_tile, place_of_tile, update_of


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
    row, is_row, at, there = elements_of_tile(shape, tensors, tensor, number, COLUMNS, BLOCK)
    weights = load_tile(w, at, there)
    moment = load_tile(m, at, there)
    moment_sq = moment
    grads = moment
    if ADAM:
        moment_sq = load_tile(v, at, there)
    if NESTEROV:
        grads = load_tile(g, at, there)
        if MAXIMIZE:
            grads = -grads
    p = update_of(grads, moment, moment_sq, first, ratio, eps, there, momentum, ADAM, NESTEROV)
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
    """Step: w <- w (keep + lr c) - lr p, c of the row where rows are projected; the last tile first, which is in the cache still."""
    tile = tiles - 1 - tl.program_id(0).to(tl.int64)
    tensor, number, columns = place_of_tile(tile, owner, first_tile, shape, tensors)
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
            shape, tensors, tensor, number, sums, rows, rowwise, kept, lr, w, g, m, v, first, ratio, momentum, eps,
            W, ADAM, NESTEROV, MAXIMIZE, NARROW, BLOCK
        )  # fmt: skip
    elif columns == MIDDLE:
        _step_of(
            shape, tensors, tensor, number, sums, rows, rowwise, kept, lr, w, g, m, v, first, ratio, momentum, eps,
            W, ADAM, NESTEROV, MAXIMIZE, MIDDLE, BLOCK
        )  # fmt: skip
    else:
        _step_of(
            shape, tensors, tensor, number, sums, rows, rowwise, kept, lr, w, g, m, v, first, ratio, momentum, eps,
            W, ADAM, NESTEROV, MAXIMIZE, BLOCK, BLOCK
        )  # fmt: skip
