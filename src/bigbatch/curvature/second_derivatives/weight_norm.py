"""Weight normalisation whose second derivatives are right.

torch's fused `_weight_norm`, behind both `torch.nn.utils.weight_norm` and `torch.nn.utils.parametrizations.weight_norm`, has a wrong second
derivative on the CPU in 2.13 (its own `gradgradcheck` fails): Hessian products were off by 16 to 180 %.
"""

from torch import Tensor


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor | None:
    """As `torch._weight_norm`: v scaled to length g, for each index of `dim`, or as a whole for -1; None for what is not differentiated.

    >>> import torch
    >>> weight_norm(torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([[10.0]])).tolist()
    [[6.0, 8.0]]
    """
    if not (v.requires_grad or g.requires_grad):
        return None
    others = [d for d in range(v.dim()) if d != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / v.square().sum(others, keepdim=True).sqrt()) if others else v * (g / v.abs())
