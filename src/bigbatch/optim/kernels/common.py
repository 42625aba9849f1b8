"""What the kernels share: tensors by their addresses, and sums over chunks that add in a fixed order.

A kernel's program finds the tensor and the place of its chunk in tables (see `tables`). Offsets into a tensor are 64 bits. Sums are taken
in float32, lane by lane and then as a tree; the sums of chunks are added by a program of their own, without atomics: equal inputs give
equal bits.
"""

import math
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigbatch.core.hardware.kernels import OPTIONS
from bigbatch.optim.batches import Batch


@triton.jit
def element_pointer(addresses, tensor, start, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The place `start` of a tensor, as a pointer; aligned ones are said to be multiples of 16 bytes."""
    address = tl.load(addresses + tensor)
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def load(pointer, offsets, left, FULL: tl.constexpr):
    """Elements as float32; zero past the end."""
    if FULL:
        values = tl.load(pointer + offsets)
    else:
        values = tl.load(pointer + offsets, mask=offsets < left, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store(pointer, offsets, values, left, TYPE: tl.constexpr, FULL: tl.constexpr):
    """Write float32 values in the type of the tensor, rounded to the nearest."""
    if FULL:
        tl.store(pointer + offsets, values.to(TYPE))
    else:
        tl.store(pointer + offsets, values.to(TYPE), mask=offsets < left)


@triton.jit
def place_of(chunk, owner, first, sizes, BLOCK: tl.constexpr):
    """Tensor of a chunk, where the chunk starts in it, and how many of its elements are left from there."""
    tensor = tl.load(owner + chunk).to(tl.int64)
    start = (chunk - tl.load(first + tensor)) * BLOCK
    return tensor, start, tl.load(sizes + tensor) - start


@triton.jit(do_not_specialize=["chunks", "tensors"])
def sum_chunks(partial, first, total, chunks, tensors, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """One program for each tensor: total[k, tensor] is the sum of partial[k, chunk] over its chunks."""
    tensor = tl.program_id(0).to(tl.int64)
    begin = tl.load(first + tensor)
    end = tl.load(first + tensor + 1)
    lanes = tl.arange(0, BLOCK)
    for k in tl.static_range(SUMS):
        added = tl.zeros((BLOCK,), tl.float32)
        for at in range(begin, end, BLOCK):
            added += tl.load(partial + tl.cast(chunks, tl.int64) * k + at + lanes, mask=at + lanes < end, other=0.0)
        tl.store(total + tl.cast(tensors, tl.int64) * k + tensor, tl.sum(added, 0))


def compiled_for(batch: Batch) -> dict[str, Any]:
    """Types of weights and gradients, and the compiler's options."""
    weight, grad = (getattr(tl, str(tensors[0].dtype).removeprefix("torch.")) for tensors in (batch.params, batch.grads))
    return {"W": weight, "G": grad, **OPTIONS}


def totals(partial: Tensor, first: Tensor) -> Tensor:
    """Sums over the chunks of each tensor, in float32 and always in the same order.

    Args:
        partial: (sums, chunks).
        first: (tensors + 1,), the first chunk of each tensor and the end.

    Returns:
        (sums, tensors).
    """
    sums, tensors = len(partial), len(first) - 1
    total = torch.empty(sums, tensors, dtype=torch.float32, device=partial.device)
    sum_chunks[(tensors,)](partial, first, total, partial.size(1), tensors, SUMS=sums, BLOCK=1024, **OPTIONS)
    return total


@triton.jit
def _power_of(high, low, t):
    """b^t in float64, log(b) being the sum of two float32 numbers: kernels are given no other."""
    return tl.exp(t.to(tl.float64) * (tl.cast(high, tl.float64) + tl.cast(low, tl.float64)))


@triton.jit(do_not_specialize=["row", "tensors"])
def count_steps(addresses, row, tensors, firsts, ratios, high_1, low_1, high_2, low_2, BLOCK: tl.constexpr):
    """Count a step of each tensor, and store its bias corrections, 1 - b1^t and (1 - b1^t) / sqrt(1 - b2^t)."""
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    step = tl.load(addresses + tl.cast(row, tl.int64) * tensors + tensor, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(step, mask=inside, other=0.0) + 1.0
    tl.store(step, t, mask=inside)
    first = 1.0 - _power_of(high_1, low_1, t)
    second = 1.0 - _power_of(high_2, low_2, t)
    tl.store(firsts + tensor, first.to(tl.float32), mask=inside)
    tl.store(ratios + tensor, (first / tl.sqrt(second)).to(tl.float32), mask=inside)


def bias_corrections(betas: tuple[float, float], addresses: Tensor) -> tuple[Tensor, Tensor]:
    """`bigbatch.optim.adam.bias_corrections` in one launch; the last row of `addresses` is that of the steps."""
    rows, tensors = addresses.shape
    first, ratio = torch.empty(2, tensors, dtype=torch.float32, device=addresses.device)
    logs = (part for b in betas for part in _two_floats(math.log(b) if b else -math.inf))
    count_steps[(triton.cdiv(tensors, 256),)](addresses, rows - 1, tensors, first, ratio, *logs, BLOCK=256, **OPTIONS)
    return first, ratio


def _two_floats(x: float) -> tuple[float, float]:
    """A number as the sum of two float32 ones.

    >>> _two_floats(0.1)
    (0.10000000149011612, -1.4901161138336505e-09)
    """
    high: float = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high if math.isfinite(x) else 0.0


@triton.jit
def ratio_or_one(numerator, denominator):
    """Divide; 1 where either is zero."""
    usable = (numerator != 0.0) & (denominator != 0.0)
    return tl.where(usable, tl.div_rn(numerator, tl.where(usable, denominator, 1.0)), 1.0)


@triton.jit
def adam_moments(grads, m, v, rise, b2, rise_sq, MAXIMIZE: tl.constexpr):
    """The moments m + (1 - b1) (g - m) and b2 v + (1 - b2) g^2."""
    if MAXIMIZE:
        grads = -grads
    return m + rise * (grads - m), b2 * v + rise_sq * grads * grads
