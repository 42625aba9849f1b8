"""LAMB's kernels: moments and the norms of weights and directions in one pass, the step in another, which makes the directions again.

A direction is not stored: to read it back would cost as much as to read both moments once more, and its memory besides.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from bigbatch.core.tensors.sharding import sum_over_shards
from bigbatch.optim.batches import Batch
from bigbatch.optim.kernels.common import (
    adam_moments,
    bias_corrections,
    compiled_for,
    element_pointer,
    load,
    place_of,
    ratio_or_one,
    store,
    totals,
)
from bigbatch.optim.kernels.tables import on_device, table_of

BLOCK, WARPS = 2048, 8
"""Elements of a chunk: 8 for each thread, of four tensors."""


def update(group: dict[str, Any], batch: Batch) -> bool:
    """One update of a batch; False if these addresses can't be sent to the device now (see `table_of`)."""
    table = table_of(batch, ("exp_avg", "exp_avg_sq", "step"), length=BLOCK)
    if table is None:
        return False
    cut, tensors, device = table.cut, len(batch.params), batch.params[0].device
    tables = (table.addresses, cut.owner, cut.first, cut.sizes, tensors, cut.num)
    types = {**compiled_for(batch), "ALIGNED": table.aligned, "DECAY": bool(group["weight_decay"]), "BLOCK": BLOCK, "num_warps": WARPS}
    first, ratio = bias_corrections(group["betas"], table.addresses) if group["bias_correction"] else torch.ones(2, tensors, device=device)
    lr = on_device(group["lr"], device)
    numbers = (first, ratio, *map(float, (1 - group["betas"][0], group["betas"][1], 1 - group["betas"][1], group["eps"])))
    partial = torch.empty(2, cut.num, dtype=torch.float32, device=device)
    decay = float(group["weight_decay"])
    if cut.num:
        _moments[(cut.num,)](*tables, partial, *numbers, decay, MAXIMIZE=bool(group["maximize"]), **types)
    sq_norms = sum_over_shards(totals(partial, cut.first), batch.where) if group["adapt"] else lr
    if cut.num:
        _step[(cut.num,)](*tables, sq_norms, lr, first, ratio, float(group["eps"]), decay, ADAPT=bool(group["adapt"]), **types)
    return True


@triton.jit
def direction_of(weights, m, v, first, ratio, eps, decay, lanes, left, DECAY: tl.constexpr, FULL: tl.constexpr):
    """Direction u = m^ / (sqrt(v^) + eps) + lambda w, both parts of the fraction times 1 - b1^t; zero past the end."""
    direction = tl.div_rn(m, tl.sqrt_rn(v) * ratio + first * eps)
    if not FULL:
        direction = tl.where(lanes < left, direction, 0.0)
    if DECAY:
        direction += decay * weights
    return direction


@triton.jit
def _moments_of(
    w,
    g,
    m,
    v,
    left,
    first,
    ratio,
    rise,
    b2,
    rise_sq,
    eps,
    decay,
    DECAY: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    weights = load(w, lanes, left, FULL)
    grads = load(g, lanes, left, FULL)
    moment, moment_sq = adam_moments(grads, load(m, lanes, left, FULL), load(v, lanes, left, FULL), rise, b2, rise_sq, MAXIMIZE)
    store(m, lanes, moment, left, tl.float32, FULL)
    store(v, lanes, moment_sq, left, tl.float32, FULL)
    direction = direction_of(weights, moment, moment_sq, first, ratio, eps, decay, lanes, left, DECAY, FULL)
    return tl.sum(weights * weights, 0), tl.sum(direction * direction, 0)


@triton.jit(do_not_specialize=["tensors", "chunks"])
def _moments(
    addresses,
    owner,
    first_chunk,
    sizes,
    tensors,
    chunks,
    partial,
    firsts,
    ratios,
    rise,
    b2,
    rise_sq,
    eps,
    decay,
    W: tl.constexpr,
    G: tl.constexpr,
    ALIGNED: tl.constexpr,
    DECAY: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update m and v; partial[0, chunk], partial[1, chunk]: sums of squares of the weights and of the directions."""
    chunk = tl.program_id(0).to(tl.int64)
    tensor, start, left = place_of(chunk, owner, first_chunk, sizes, BLOCK)
    w = element_pointer(addresses, tensor, start, W, ALIGNED)
    g = element_pointer(addresses + tensors, tensor, start, G, ALIGNED)
    m = element_pointer(addresses + 2 * tensors, tensor, start, tl.float32, ALIGNED)
    v = element_pointer(addresses + 3 * tensors, tensor, start, tl.float32, ALIGNED)
    first = tl.load(firsts + tensor)
    ratio = tl.load(ratios + tensor)
    if left >= BLOCK:
        ww, uu = _moments_of(w, g, m, v, left, first, ratio, rise, b2, rise_sq, eps, decay, DECAY, MAXIMIZE, True, BLOCK)
    else:
        ww, uu = _moments_of(w, g, m, v, left, first, ratio, rise, b2, rise_sq, eps, decay, DECAY, MAXIMIZE, False, BLOCK)
    tl.store(partial + chunk, ww)
    tl.store(partial + chunks + chunk, uu)


@triton.jit
def _step_of(w, m, v, left, rate, first, ratio, eps, decay, W: tl.constexpr, DECAY: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    weights = load(w, lanes, left, FULL)
    moment, moment_sq = load(m, lanes, left, FULL), load(v, lanes, left, FULL)
    direction = direction_of(weights, moment, moment_sq, first, ratio, eps, decay, lanes, left, DECAY, FULL)
    store(w, lanes, weights - rate * direction, left, W, FULL)


@triton.jit(do_not_specialize=["tensors", "chunks"])
def _step(
    addresses,
    owner,
    first_chunk,
    sizes,
    tensors,
    chunks,
    sq_norms,
    lr,
    firsts,
    ratios,
    eps,
    decay,
    W: tl.constexpr,
    G: tl.constexpr,
    ALIGNED: tl.constexpr,
    ADAPT: tl.constexpr,
    DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step: w <- w - rate u; the last chunk first, which the pass before has left in the cache."""
    chunk = chunks - 1 - tl.program_id(0).to(tl.int64)
    tensor, start, left = place_of(chunk, owner, first_chunk, sizes, BLOCK)
    w = element_pointer(addresses, tensor, start, W, ALIGNED)
    m = element_pointer(addresses + 2 * tensors, tensor, start, tl.float32, ALIGNED)
    v = element_pointer(addresses + 3 * tensors, tensor, start, tl.float32, ALIGNED)
    rate, first, ratio = tl.load(lr), tl.load(firsts + tensor), tl.load(ratios + tensor)
    if ADAPT:
        rate *= ratio_or_one(tl.sqrt_rn(tl.load(sq_norms + tensor)), tl.sqrt_rn(tl.load(sq_norms + tensors + tensor)))
    if left >= BLOCK:
        _step_of(w, m, v, left, rate, first, ratio, eps, decay, W, DECAY, True, BLOCK)
    else:
        _step_of(w, m, v, left, rate, first, ratio, eps, decay, W, DECAY, False, BLOCK)
