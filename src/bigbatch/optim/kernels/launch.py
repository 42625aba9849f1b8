"""When a step is made by kernels, and what happens where they do not work."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from bigbatch.core.hardware import kernels
from bigbatch.optim.batches import Batch

Update = Callable[[dict[str, Any], Batch], bool]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MODULES = {
    "lars": ("lars", "update"),
    "lamb": ("lamb", "update"),
    "adamp": ("projected", "update_adamp"),
    "sgdp": ("projected", "update_sgdp"),
}
_FLAGS = ("nesterov", "lr_in_momentum", "maximize", "adapt", "bias_correction")


def made_by_kernels(method: str, group: dict[str, Any], batch: Batch) -> bool:
    """Make one update of a batch by the kernels of a method: "lars", "lamb", "adamp" or "sgdp".

    Returns:
        Whether it was made. Not where triton is missing, under `torch.compile`, for types other than float32, bfloat16 and float16, and
        not while a CUDA graph is captured unless the last step outside of it was of the same tensors, gradients included: keep them in
        place, `zero_grad(set_to_none=False)`. Where the kernels do not work on a device, one warning says why.
    """
    if not _fits(batch):
        return False
    device = batch.params[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        update = _update_of(method, group, batch)
        return update is not None and update(group, batch)


def _fits(batch: Batch) -> bool:
    p, g = batch.params[0], batch.grads[0]
    plain = type(p) in (Tensor, Parameter) and type(g) is Tensor  # a fake tensor has no address
    return plain and p.device.type in kernels.DEVICES and p.dtype in _TYPES and g.dtype in _TYPES


def _update_of(method: str, group: dict[str, Any], batch: Batch) -> Update | None:
    """The kernels' update, once it has been tried on the device with settings of this kind; None where it does not work."""
    p, g = batch.params[0], batch.grads[0]
    flags = tuple(bool(group.get(name)) for name in (*_FLAGS, "weight_decay"))
    module, name = _MODULES[method]

    def update() -> Update:
        found: Update = getattr(importlib.import_module(f"bigbatch.optim.kernels.{module}"), name)
        return found

    def try_out() -> None:
        for aligned in (True, False):
            update()({**group, "lr": 0.0}, _small_batch(batch, aligned=aligned))

    works = kernels.kernels_work(
        method, (p.dtype, g.dtype, flags), p.device, try_out, instead="steps are made by torch's foreach functions"
    )
    return update() if works else None


def _small_batch(like: Batch, *, aligned: bool) -> Batch:
    """Two small tensors of the types of a batch: what fails to compile must fail before anything of the user's has changed."""

    def make(dtype: torch.dtype, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        return torch.ones(size + 1, dtype=dtype, device=like.params[0].device)[0 if aligned else 1 :][:size].view(shape)

    def tensors(dtype: torch.dtype) -> list[Tensor]:
        return [make(dtype, 2, 3), make(dtype, 5)]

    params = tensors(like.params[0].dtype)
    states = [{name: make(torch.float32) if name == "step" else make(torch.float32, *p.shape) for name in like.states[0]} for p in params]
    return Batch(params, tensors(like.grads[0].dtype), states, None, params, [], {})
