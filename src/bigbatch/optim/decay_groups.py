"""Parameter groups as a recipe's section asks for them, for optimizers that split weights from norms and biases."""

from typing import Any

from torch import nn

from bigbatch.core.tensors.groups import param_groups
from bigbatch.recipe.sections import LayerWise, UniformDecay


def decay_groups(model: nn.Module, o: UniformDecay | LayerWise) -> list[dict[str, Any]]:
    """One group for everything, unless norms and biases are treated apart; settings are `weight_decay` and `adapt`.

    Raises:
        UserError: If a pattern of `o.groups` matches nothing.
    """
    adapt = not isinstance(o, LayerWise) or o.adapt_norms_and_biases
    if adapt and (o.decay_norms_and_biases or not o.weight_decay) and not o.groups:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": o.weight_decay}]
    flags = {"decay_norms_and_biases": o.decay_norms_and_biases, "adapt_norms_and_biases": adapt}
    return param_groups(model, weight_decay=o.weight_decay, **flags, overrides=o.groups)
