"""Adam's direction, which LAMB, AdamP and Muon's other half build on. No optimizer: torch.optim.AdamW is a good one."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.optim.base import Batch


class Corrections(NamedTuple):
    """Bias corrections of the tensors of a batch, each a 0-dim tensor on their device."""

    first: tuple[Tensor, ...]  # 1 - b1^t
    root_second: tuple[Tensor, ...]  # sqrt(1 - b2^t)

    def of(self, indices: Iterable[int]) -> "Corrections":
        """Those of some of the tensors."""
        chosen = list(indices)
        return Corrections(tuple(self.first[i] for i in chosen), tuple(self.root_second[i] for i in chosen))


def corrections(batch: Batch, betas: tuple[float, float]) -> Corrections:
    """Count one more step of every tensor and return its bias corrections; nothing waits for the device."""
    steps = [state["step"] for state in batch.states]
    torch._foreach_add_(steps, 1)
    t = torch.stack(steps).double()
    first, second = 1 - betas[0] ** t, (1 - betas[1] ** t).sqrt()
    dtype = torch.promote_types(batch.params[0].dtype, torch.float32)
    return Corrections(first.to(dtype).unbind(), second.to(dtype).unbind())


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
    if grads[0].dtype != firsts[0].dtype:
        grads = [g.to(firsts[0].dtype) for g in grads]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(firsts, grads, 1 - b1)
    torch._foreach_mul_(seconds, b2)
    torch._foreach_addcmul_(seconds, grads, grads, 1 - b2)
    directions = torch._foreach_sqrt(seconds)
    if bias is not None:
        torch._foreach_div_(directions, bias.root_second)
    torch._foreach_add_(directions, group["eps"])
    if bias is not None:
        torch._foreach_mul_(directions, bias.first)
    torch._foreach_reciprocal_(directions)
    torch._foreach_mul_(directions, firsts)
    return list(directions)
