"""Adam's direction, which LAMB, AdamP and Muon's other half build on. No optimizer: torch.optim.AdamW is a good one."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.optim.batches import Batch


class Corrections(NamedTuple):
    """Bias corrections of the tensors of a batch, each a 0-dim tensor on their device."""

    steps: tuple[Tensor, ...]  # t
    first: tuple[Tensor, ...]  # 1 - b1^t
    ratio: tuple[Tensor, ...]  # (1 - b1^t) / sqrt(1 - b2^t)

    def of(self, indices: Iterable[int]) -> "Corrections":
        """Those of some of the tensors."""
        chosen = list(indices)
        return Corrections(*(tuple(values[i] for i in chosen) for values in self))


def corrections(batch: Batch, betas: tuple[float, float]) -> Corrections:
    """Count one more step of every tensor and return its bias corrections; nothing waits for the device."""
    first, ratio = bias_corrections(batch, betas)
    return Corrections(tuple(state["step"] for state in batch.states), first.unbind(), ratio.unbind())


def bias_corrections(batch: Batch, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Count one more step of every tensor.

    Returns:
        1 - b1^t and (1 - b1^t) / sqrt(1 - b2^t), of shape (tensors,) each; nothing waits for the device.
    """
    steps = [state["step"] for state in batch.states]
    torch._foreach_add_(
        steps, torch.ones(()) if steps[0].is_cpu and not torch.compiler.is_compiling() else 1
    )  # a number is wrapped each time
    t = torch.stack(steps).double()
    first = 1 - betas[0] ** t
    ratio = first / (1 - betas[1] ** t).sqrt()
    dtype = torch.promote_types(batch.params[0].dtype, torch.float32)
    return first.to(dtype), ratio.to(dtype)


def adam_directions(
    grads: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], group: dict[str, Any], bias: Corrections | None
) -> list[Tensor]:
    """Update both moments and return m^ / (sqrt(v^) + eps): the only temporary, of the size of the tensors given.

    Args:
        grads: Not written; any floating type.
        firsts: m of each, in place.
        seconds: v of each, in place.
        group: With `betas`, `eps` and `maximize`.
        bias: For each tensor; None for no correction.
    """
    b1, b2 = group["betas"]
    if fuses(grads[0], firsts[0]):
        return _fused(grads, firsts, seconds, group, bias)
    if grads[0].dtype != firsts[0].dtype:
        grads = [g.to(firsts[0].dtype) for g in grads]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(firsts, grads, 1 - b1)
    torch._foreach_mul_(seconds, b2)
    torch._foreach_addcmul_(seconds, grads, grads, 1 - b2)
    directions = list(torch._foreach_sqrt(seconds))
    if bias is None:
        torch._foreach_add_(directions, group["eps"])
    else:  # (1 - b1^t) (sqrt(v^) + eps), so that m itself can be divided by it
        torch._foreach_mul_(directions, bias.ratio)
        torch._foreach_add_(directions, list((torch.stack(bias.first) * group["eps"]).unbind()))
    if firsts[0].is_cpu:
        for direction, m in zip(directions, firsts, strict=True):
            torch.div(m, direction, out=direction)
        return directions
    part = max(len(firsts) // 8, 1)  # no two lists of the parameters' size at once
    for i in range(0, len(firsts), part):
        directions[i : i + part] = torch._foreach_div(firsts[i : i + part], directions[i : i + part])
    return directions


def fuses(grad: Tensor, first: Tensor) -> bool:
    """Whether a direction is made in one pass, so that cutting tensors into blocks saves nothing."""
    return grad.device.type == "cpu" and grad.dtype == first.dtype and not torch.compiler.is_compiling()


def _fused(
    grads: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], group: dict[str, Any], bias: Corrections | None
) -> list[Tensor]:
    """One pass over memory: torch's fused Adam takes a step of rate -1 from zero, which is the direction itself."""
    b1, b2 = group["betas"]
    sizes = [m.numel() for m in firsts]
    directions = list(torch.split(torch.zeros(sum(sizes), dtype=firsts[0].dtype), sizes))
    steps = list(bias.steps) if bias is not None else [torch.full((), math.inf)] * len(grads)  # b^inf = 0: no correction
    torch._fused_adam_(
        directions,
        grads,
        firsts,
        seconds,
        [],
        steps,
        lr=-1.0,
        beta1=b1,
        beta2=b2,
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )
    return directions
