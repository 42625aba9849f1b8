"""Parameter groups with two separate masks: what decays, and what a layer-wise method adapts."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def is_norm_or_bias(model: nn.Module) -> dict[str, bool]:
    """Which parameters are gains or biases rather than weights.

    True for every parameter of a normalisation layer and for every tensor of fewer than two dimensions (biases of linear,
    convolutional and recurrent layers).

    Returns:
        Parameter name to flag, in the order of `model.named_parameters()`; a shared tensor appears once.

    >>> is_norm_or_bias(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm([3, 3])))
    {'0.weight': False, '0.bias': True, '1.weight': True, '1.bias': True}
    """
    in_norm = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    return {name: id(p) in in_norm or p.ndim < 2 for name, p in model.named_parameters()}


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norms_and_biases: bool = False,
    adapt_norms_and_biases: bool = False,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters for an optimizer.

    "No decay" and "no layer-wise adaptation" are two switches (papers disagree on each); `weight_decay` and `adapt` are therefore
    two settings of a group. Plain torch optimizers ignore `adapt`.

    Args:
        model: Any module; parameters with `requires_grad=False` are left out.
        weight_decay: Decay of the weights, in the optimizer's own unit.
        decay_norms_and_biases: Whether norms and biases decay too.
        adapt_norms_and_biases: Whether norms and biases get a layer-wise rate too.

    Returns:
        One or two groups with keys `params`, `weight_decay`, `adapt`; never an empty group.
    """
    flags = is_norm_or_bias(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = [p for name, p in trainable.items() if not flags[name]]
    rest = [p for name, p in trainable.items() if flags[name]]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {
            "params": rest,
            "weight_decay": weight_decay if decay_norms_and_biases else 0.0,
            "adapt": adapt_norms_and_biases,
        },
    ]
    return [group for group in groups if group["params"]]
