"""A stand-in for a GPU on a machine without one: tensors that say they are on "meta" and compute on the CPU.

What a real GPU refuses is refused: operations that mix its tensors with the CPU's, gloo's messages, looks by numpy. Whatever waits for the
device is counted in `waits`: copies to the CPU, and values read one by one.
"""

import torch
from torch.utils._pytree import tree_map

GPU = torch.device("meta")  # autograd of a build without CUDA knows no tensors of "cuda"
waits = []
COLLECTIVES = ("broadcast_", "allreduce_", "allgather_", "barrier")  # which NCCL has, too


class OnGPU(torch.Tensor):
    """See the module's docstring."""

    @staticmethod
    def __new__(cls, inner):
        facts = {"dtype": inner.dtype, "strides": inner.stride(), "storage_offset": inner.storage_offset(), "device": GPU}
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **facts)
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, name, space = dict(kwargs or {}), func._schema.name.rpartition("::")[2], func._schema.name.partition("::")[0]
        there, here = tensors_of((args, kwargs))
        if space == "c10d" and name not in COLLECTIVES:
            raise AssertionError(f"gloo was given a tensor of the GPU: {func}")
        if name in ("_local_scalar_dense", "item", "nonzero", "equal"):
            waits.append(name)
        moves = name in ("_to_copy", "copy_")
        if not moves and space == "aten" and any(t.dim() for t in here):
            raise AssertionError(f"{func} mixes devices")
        if name == "copy_" and there and args[0] is not there[0]:
            waits.append(name)
        to = kwargs.pop("device", None)
        if name == "_to_copy" and to is not None and to.type == "cpu":
            waits.append(name)
        kwargs.pop("pin_memory", None)
        results = func(*tree_map(inner_of, args), **tree_map(inner_of, kwargs))
        if name.endswith("_") and space == "aten":
            return args[0]
        if space == "c10d" or (to is not None and to.type == "cpu"):
            return results
        return tree_map(lambda t: OnGPU(t) if isinstance(t, torch.Tensor) else t, results)


def tensors_of(tree):
    """Those of the stand-in, and those of the CPU."""
    found = []
    tree_map(lambda t: found.append(t) if isinstance(t, torch.Tensor) else None, tree)
    return [t for t in found if isinstance(t, OnGPU)], [t for t in found if not isinstance(t, OnGPU)]


def inner_of(value):
    return value.inner if isinstance(value, OnGPU) else value


class Moves(torch.utils._python_dispatch.TorchDispatchMode):
    """Within, tensors of the CPU may be moved to the stand-in, and made there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and torch.device(device) == GPU:
            if not any(issubclass(t, OnGPU) for t in types):
                kwargs["device"] = torch.device("cpu")
                copied = func(*args, **kwargs)
                return OnGPU(copied.clone() if any(copied is a for a in args) else copied)
            kwargs.pop("device")
        return func(*args, **kwargs)


def moved(module):
    """A module with its parameters on the stand-in."""
    for owner in module.modules():
        for name, p in owner.named_parameters(recurse=False):
            setattr(owner, name, torch.nn.Parameter(OnGPU(p.detach().clone())))
    return module
