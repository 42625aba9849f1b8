"""How many kernels a step would launch on a CUDA device, counted on `meta` tensors, which take the path of a device.

`torch._foreach_*` is one launch for many tensors only on its fast route: all tensors dense, of one type, and each list's tensors of the
sizes and strides of the first list's (ATen/native/ForeachUtils.h). Otherwise, as with a list of 0-dim factors, it is one for each tensor.
The fast route's launches are those of `multi_tensor_apply` (ATen/native/cuda/MultiTensorApply.cuh).
"""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""In one launch, by the number of lists."""
MOST_BLOCKS, CHUNK = 320, 65536
FREE = {"empty", "empty_like", "new_empty", "detach", "lift_fresh", "_local_scalar_dense", "alias"}
ATOMIC = {
    "index_add",
    "index_reduce",
    "scatter_add",
    "scatter_reduce",
    "_index_put_impl",
    "index_put",
    "put",
    "bincount",
    "histc",
    "scatter",
}
"""Additions in any order on CUDA: equal inputs do not give equal bits."""


def multi_tensor_launches(sizes, lists):
    """Launches of one `multi_tensor_apply`."""
    launches = tensors = blocks = 0
    for number, size in enumerate(sizes):
        chunks = -(-size // CHUNK)
        tensors += 1
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            full = (tensors == MOST_TENSORS[lists] and last) or blocks == MOST_BLOCKS
            if full or (last and number == len(sizes) - 1):
                launches += 1
                blocks, tensors = 0, 0 if last else 1
    return launches


def is_fast(lists):
    first = lists[0]
    tensors = [t for ts in lists for t in ts]
    alike = all(t.dtype == first[0].dtype and t.device == first[0].device for t in tensors)
    dense = all(torch.ops.aten.is_non_overlapping_and_dense(t) for t in tensors)
    return alike and dense and all(t.shape == f.shape and t.stride() == f.stride() for ts in lists for f, t in zip(first, ts, strict=True))


class Launches(TorchDispatchMode):
    """Counts by operation, and the operations that add by atomics."""

    def __init__(self):
        super().__init__()
        self.by_name, self.atomic = Counter(), set()

    @property
    def total(self):
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.by_name[name] += self._of(func, name, args, kwargs or {}, out)
        accumulates = any(a is True for a in (*args, *(kwargs or {}).values()))
        if name.rstrip("_") in ATOMIC and (accumulates or name.rstrip("_") not in ("index_put", "_index_put_impl", "put")):
            self.atomic.add(name)
        return out

    def _of(self, func, name, args, kwargs, out):
        if name.startswith("_foreach_"):
            return self._foreach(name, args, kwargs, out)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in FREE or func.is_view or not any(t.numel() for t in made):
            return 0
        if name in ("cat", "stack"):  # 128 tensors at once
            return -(-len(args[0]) // 128)
        return 1

    def _foreach(self, name, args, kwargs, out):
        lists = [a for a in (*args, *kwargs.values()) if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        factors = [a for a in args[1:] if isinstance(a, Tensor)]  # one 0-dim tensor for all
        sizes = [t.numel() for t in lists[0]]
        if name == "_foreach_copy_":
            lists = [[t.to(args[0][0].dtype) if t.dtype != args[0][0].dtype else t for t in ts] for ts in lists]  # types may differ
        if not is_fast(lists) or any(f.dtype != lists[0][0].dtype for f in factors):
            return len(sizes)
        if name == "_foreach_norm":
            return 2 + multi_tensor_launches(sizes, 1)  # zeros before, and a sum over chunks after
        return multi_tensor_launches(sizes, len(lists) + (not name.endswith("_")))
