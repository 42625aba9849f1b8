"""When a step is made by kernels, and what happens where they do not work."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from bigbatch.optim.base import Batch
from bigbatch.optim.kernels import tables

Update = Callable[[dict[str, Any], Batch], bool]

_DEVICES = {"cuda"}
"""Types of devices that kernels are for; the tests add others."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MODULES = {
    "lars": ("lars", "update"),
    "lamb": ("lamb", "update"),
    "adamp": ("projected", "update_adamp"),
    "sgdp": ("projected", "update_sgdp"),
}
_FLAGS = ("nesterov", "lr_in_momentum", "maximize", "adapt", "bias_correction")

_works: dict[Any, bool] = {}
"""True for each kind of step that was tried on a device and worked; False for a method that did not."""
_off = False


@contextmanager
def without_kernels() -> Iterator[None]:
    """Make steps by the `torch._foreach_*` path while this lasts: to compare, or to look for a fault."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def made_by_kernels(method: str, group: dict[str, Any], batch: Batch) -> bool:
    """Make one update of a batch by the kernels of a method: "lars", "lamb", "adamp" or "sgdp".

    Returns:
        Whether it was made. Not where triton is missing, under `torch.compile`, for types other than float32, bfloat16 and float16, and
        not while a CUDA graph is captured unless the last step outside of it was of the same tensors, gradients included: keep them in
        place, `zero_grad(set_to_none=False)`. Where the kernels do not work on a device, one warning says why.
    """
    if _off or torch.compiler.is_compiling() or not _fits(batch):
        return False
    device = batch.params[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        update = _update_of(method, group, batch)
        return update is not None and update(group, batch)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _fits(batch: Batch) -> bool:
    p, g = batch.params[0], batch.grads[0]
    plain = type(p) in (Tensor, Parameter) and type(g) is Tensor  # a fake tensor has no address
    return plain and p.device.type in _DEVICES and p.dtype in _TYPES and g.dtype in _TYPES


def _update_of(method: str, group: dict[str, Any], batch: Batch) -> Update | None:
    """The kernels' update, once it has been tried on the device with settings of this kind; None where it does not work."""
    p, g = batch.params[0], batch.grads[0]
    flags = tuple(bool(group.get(name)) for name in (*_FLAGS, "weight_decay"))
    key = (method, p.device, p.dtype, g.dtype, flags)
    if (method, p.device) in _works or not _has_triton():
        return None
    if key not in _works and tables.is_capturing(p.device):
        return None  # nothing can be compiled now
    try:
        module, name = _MODULES[method]
        update: Update = getattr(importlib.import_module(f"bigbatch.optim.kernels.{module}"), name)
        if key not in _works:
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # what the compiler warns of is no failure
                for aligned in (True, False):
                    update({**group, "lr": 0.0}, _small_batch(batch, aligned=aligned))
            _works[key] = True
    except Exception as error:  # the compiler, the driver, a missing C compiler: each raises kinds of its own
        _works[(method, p.device)] = False
        why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        warnings.warn(
            f"the kernels of {method} do not work on {p.device} ({why}): steps are made by torch's foreach functions", stacklevel=2
        )
        return None
    return update


def _small_batch(like: Batch, *, aligned: bool) -> Batch:
    """Two small tensors of the types of a batch: what fails to compile must fail before anything of the user's has changed."""

    def make(dtype: torch.dtype, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        return torch.ones(size + 1, dtype=dtype, device=like.params[0].device)[0 if aligned else 1 :][:size].view(shape)

    def tensors(dtype: torch.dtype) -> list[Tensor]:
        return [make(dtype, 2, 3), make(dtype, 5)]

    params = tensors(like.params[0].dtype)
    states = [{name: make(torch.float32) if name == "step" else make(torch.float32, *p.shape) for name in like.states[0]} for p in params]
    return Batch(params, tensors(like.grads[0].dtype), states, None, params, [])
