"""Which tensors AdamP and SGDP project, by rows or as one vector: `bigbatch.optim.projection.radial` as two kernels."""

import triton
import triton.language as tl


@triton.jit
def cosine(gw, gg, ww, floor):
    """|cos(g, w)|, norms being at least the floor; past every threshold where it is no number."""
    found = tl.div_rn(tl.abs(gw), tl.maximum(tl.sqrt_rn(gg), floor) * tl.maximum(tl.sqrt_rn(ww), floor))
    return tl.where(found == found, found, float("inf"))


@triton.jit
def radial_coefficient(wp, ww, eps):
    """Coefficient c with projected p = p - c w; 0 for a norm of 0."""
    norm = tl.sqrt_rn(ww) + eps
    return tl.where(norm > 0, tl.div_rn(wp, tl.where(norm > 0, norm * norm, 1.0)), 0.0)


@triton.jit
def _sum_over_tiles(partial, start, across, most, is_row, ROWS: tl.constexpr, STEP: tl.constexpr):
    added = tl.zeros((ROWS, STEP), tl.float32)
    for begin in range(0, most, STEP):
        at = begin + tl.arange(0, STEP)
        there = is_row[:, None] & (at < across)[None, :]
        added += tl.load(partial + start[:, None] + at[None, :], mask=there, other=0.0)
    return tl.sum(added, 1)


@triton.jit(do_not_specialize=["tensors", "partials", "num_rows", "blocks"])
def sum_rows(
    owner, first_block, shape, tensors, partial, partials, sums, num_rows, found, blocks, floor, ROWS: tl.constexpr, STEP: tl.constexpr
):
    """One program for a block of rows of a matrix.

    sums[0, row], sums[1, row]: w w and p w. found[0, block]: the largest cosine of its rows; found[1..4, block]: g w, g g, w w and p w.
    """
    block = tl.program_id(0).to(tl.int64)
    tensor = tl.load(owner + block).to(tl.int64)
    row = (block - tl.load(first_block + tensor)) * ROWS + tl.arange(0, ROWS)
    is_row = row < tl.load(shape + tensor)
    across = tl.load(shape + 3 * tensors + tensor)
    start = tl.load(shape + 4 * tensors + tensor) + row * across
    to = tl.cast(partials, tl.int64)
    gw = _sum_over_tiles(partial, start, across, across, is_row, ROWS, STEP)
    gg = _sum_over_tiles(partial + to, start, across, across, is_row, ROWS, STEP)
    ww = _sum_over_tiles(partial + 2 * to, start, across, across, is_row, ROWS, STEP)
    wp = _sum_over_tiles(partial + 3 * to, start, across, across, is_row, ROWS, STEP)
    here = sums + tl.load(shape + 5 * tensors + tensor) + row
    tl.store(here, ww, mask=is_row)
    tl.store(here + num_rows, wp, mask=is_row)
    worst = tl.max(tl.where(is_row, cosine(gw, gg, ww, floor), 0.0), 0)
    tl.store(found + block, worst)
    tl.store(found + blocks + block, tl.sum(gw, 0))
    tl.store(found + 2 * blocks + block, tl.sum(gg, 0))
    tl.store(found + 3 * blocks + block, tl.sum(ww, 0))
    tl.store(found + 4 * blocks + block, tl.sum(wp, 0))


@triton.jit(do_not_specialize=["tensors", "blocks"])
def decide(first_block, shape, tensors, found, blocks, by_row, keep, lrs, decays, delta, wd_ratio, floor, eps, BLOCK: tl.constexpr):
    """One program for each tensor: whether its rows are projected, and what all of its weights are multiplied by."""
    tensor = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first_block + tensor), tl.load(first_block + tensor + 1)
    worsts = tl.zeros((BLOCK,), tl.float32)
    gws = tl.zeros((BLOCK,), tl.float32)
    ggs = tl.zeros((BLOCK,), tl.float32)
    wws = tl.zeros((BLOCK,), tl.float32)
    wps = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < end
        worsts = tl.maximum(worsts, tl.load(found + at, mask=there, other=0.0))
        gws += tl.load(found + blocks + at, mask=there, other=0.0)
        ggs += tl.load(found + 2 * blocks + at, mask=there, other=0.0)
        wws += tl.load(found + 3 * blocks + at, mask=there, other=0.0)
        wps += tl.load(found + 4 * blocks + at, mask=there, other=0.0)
    length = tl.load(shape + tensors + tensor)
    elements = length * tl.load(shape + tensor)
    ww = tl.sum(wws, 0)
    is_matrix = end > begin
    rowwise = is_matrix & (tl.max(worsts, 0) < tl.div_rn(delta, tl.sqrt_rn(length.to(tl.float32))))
    layerwise = is_matrix & (cosine(tl.sum(gws, 0), tl.sum(ggs, 0), ww, floor) < tl.div_rn(delta, tl.sqrt_rn(elements.to(tl.float32))))
    share = tl.where(rowwise | layerwise, wd_ratio, 1.0)
    kept = 1.0 - tl.load(decays) * share
    coefficient = radial_coefficient(tl.sum(wps, 0), ww, eps)
    tl.store(by_row + tensor, rowwise.to(tl.int32))
    tl.store(keep + tensor, kept + tl.where(layerwise & (rowwise == 0), tl.load(lrs) * coefficient, 0.0))
