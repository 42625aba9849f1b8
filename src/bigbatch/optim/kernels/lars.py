"""LARS's kernels: norms of weights and gradients, then one pass that updates buffers and weights."""

from typing import Any

import torch
import triton
import triton.language as tl

from bigbatch.core.tensors.sharding import sum_over_shards
from bigbatch.optim.batches import Batch
from bigbatch.optim.kernels.common import compiled_for, element_pointer, load, place_of, ratio_or_one, store, totals
from bigbatch.optim.kernels.tables import on_device, table_of

BLOCK, WARPS = 4096, 8
"""Elements of a chunk: 16 for each thread."""


def update(group: dict[str, Any], batch: Batch) -> bool:
    """One update of a batch; False if these addresses can't be sent to the device now (see `table_of`)."""
    table = table_of(batch, ("momentum_buffer",), length=BLOCK)
    if table is None:
        return False
    cut, tensors, device = table.cut, len(batch.params), batch.params[0].device
    tables = (table.addresses, cut.owner, cut.first, cut.sizes, tensors, cut.num)
    types = {**compiled_for(batch), "ALIGNED": table.aligned, "BLOCK": BLOCK, "num_warps": WARPS}
    sq_norms = lr = on_device(group["lr"], device)
    if group["adapt"]:
        partial = torch.empty(2, cut.num, dtype=torch.float32, device=device)
        if cut.num:
            _sq_norms[(cut.num,)](*tables, partial, **types)
        sq_norms = sum_over_shards(totals(partial, cut.first), batch.where)
    if cut.num:
        _step[(cut.num,)](
            *tables,
            sq_norms,
            lr,
            *(float(group[name]) for name in ("momentum", "weight_decay", "trust_coefficient", "eps")),
            ADAPT=bool(group["adapt"]),
            DECAY=bool(group["weight_decay"]),
            NESTEROV=bool(group["nesterov"]),
            OUTSIDE=not group["lr_in_momentum"],
            MAXIMIZE=bool(group["maximize"]),
            **types,
        )
    return True


@triton.jit
def _sq_norms_of(w, g, left, FULL: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    weights = load(w, lanes, left, FULL)
    grads = load(g, lanes, left, FULL)
    return tl.sum(weights * weights, 0), tl.sum(grads * grads, 0)


@triton.jit(do_not_specialize=["tensors", "chunks"])
def _sq_norms(
    addresses, owner, first, sizes, tensors, chunks, partial, W: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """partial[0, chunk], partial[1, chunk]: sums of squares of the weights and of the gradients."""
    chunk = tl.program_id(0).to(tl.int64)
    tensor, start, left = place_of(chunk, owner, first, sizes, BLOCK)
    w = element_pointer(addresses, tensor, start, W, ALIGNED)
    g = element_pointer(addresses + tensors, tensor, start, G, ALIGNED)
    if left >= BLOCK:
        ww, gg = _sq_norms_of(w, g, left, True, BLOCK)
    else:
        ww, gg = _sq_norms_of(w, g, left, False, BLOCK)
    tl.store(partial + chunk, ww)
    tl.store(partial + chunks + chunk, gg)


@triton.jit
def _step_of(
    w,
    g,
    v,
    left,
    rate,
    lr,
    momentum,
    decay,
    W: tl.constexpr,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    OUTSIDE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    weights = load(w, lanes, left, FULL)
    direction = load(g, lanes, left, FULL)
    if MAXIMIZE:
        direction = -direction
    if DECAY:
        direction += decay * weights
    direction *= rate
    velocity = momentum * load(v, lanes, left, FULL) + direction
    store(v, lanes, velocity, left, tl.float32, FULL)
    step = velocity
    if NESTEROV:
        step = direction + momentum * velocity
    if OUTSIDE:
        step *= lr
    store(w, lanes, weights - step, left, W, FULL)


@triton.jit(do_not_specialize=["tensors", "chunks"])
def _step(
    addresses,
    owner,
    first,
    sizes,
    tensors,
    chunks,
    sq_norms,
    lr,
    momentum,
    decay,
    trust,
    eps,
    W: tl.constexpr,
    G: tl.constexpr,
    ALIGNED: tl.constexpr,
    ADAPT: tl.constexpr,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    OUTSIDE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step: v <- m v + rate (g + beta w), w <- w - v or its Nesterov form; the last chunk first: it is in the cache."""
    chunk = chunks - 1 - tl.program_id(0).to(tl.int64)
    tensor, start, left = place_of(chunk, owner, first, sizes, BLOCK)
    w = element_pointer(addresses, tensor, start, W, ALIGNED)
    g = element_pointer(addresses + tensors, tensor, start, G, ALIGNED)
    v = element_pointer(addresses + 2 * tensors, tensor, start, tl.float32, ALIGNED)
    rate_outside = tl.load(lr)
    rate = 1.0 if OUTSIDE else rate_outside
    if ADAPT:
        weight_norm = tl.sqrt_rn(tl.load(sq_norms + tensor))
        grad_norm = tl.sqrt_rn(tl.load(sq_norms + tensors + tensor))
        rate *= ratio_or_one(trust * weight_norm, tl.where(grad_norm == 0.0, 0.0, grad_norm + decay * weight_norm + eps))
    if left >= BLOCK:
        _step_of(w, g, v, left, rate, rate_outside, momentum, decay, W, DECAY, NESTEROV, OUTSIDE, MAXIMIZE, True, BLOCK)
    else:
        _step_of(w, g, v, left, rate, rate_outside, momentum, decay, W, DECAY, NESTEROV, OUTSIDE, MAXIMIZE, False, BLOCK)
