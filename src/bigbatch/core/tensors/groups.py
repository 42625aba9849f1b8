"""Parameter groups with two separate masks: what decays, and what a layer-wise method adapts.

A parameter is a "norm or bias" or a "weight" by the module that owns it; one that several modules share is a weight only if it is one
for each. Norms and biases are:

    every parameter of a normalisation layer     torch's own, and classes named after one (LlamaRMSNorm, T5LayerNorm, LayerNorm2d)
    vectors and scalars                          biases, gains, LayerScale's gamma, logit_scale, also of shape (1, C, 1, 1)
    biases of several dimensions                 named bias or ending in _bias: stacked experts' biases
    bare parameters that mark a place or token   pos_embed, cls_token, relative_position_bias_table, ...
    what `model.no_weight_decay()` names         as timm's models have it

Weights are the rest: of linear maps, convolutions and recurrent layers (also of one row), embeddings (nn.Embedding, as GPT's recipes
decay them) and other bare parameters. `bigbatch.optim.describe_groups(model, kind="decay")` shows what is what, and why.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.tensors.owners import Owner, Shared, chosen_by_name, owned_parameters

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
MAPS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
ROLES = ("weights", "norms_and_biases")
_NORM_CLASS = re.compile(r"norm(?!\w*(linear|conv|dense|embed|attention|mlp|block|head|layer))", re.IGNORECASE)  # not NormedLinear
_BIAS = re.compile(r"^bias|_bias$|(^|_)biases$")
_PLACE = re.compile(r"pos(ition)?_?emb|position|rel_pos|token|relative.*bias|(^|_)(latents?|queries|probe)$", re.IGNORECASE)

Overrides = Mapping[str, str | Mapping[str, Any]]
"""Patterns of names to a group, or to settings of a group."""


def is_norm_or_bias(model: nn.Module) -> dict[str, bool]:
    """Which parameters are gains or biases rather than weights; see the module's docstring for the rule.

    Returns:
        Parameter name to flag, in the order of `model.named_parameters()`; a shared tensor appears once.

    >>> is_norm_or_bias(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm([3, 3])))
    {'0.weight': False, '0.bias': True, '1.weight': True, '1.bias': True}
    """
    parameters = owned_parameters(model)
    named = no_weight_decay(model)
    return {p.name: bool(why_norm_or_bias(p, named)) for p in parameters}


def no_weight_decay(model: nn.Module) -> set[str]:
    """What a model itself names as not to decay (timm's convention); empty where it names nothing."""
    method = getattr(model, "no_weight_decay", None)
    return set(method()) if callable(method) else set()


def why_norm_or_bias(parameter: Shared, named: Collection[str] = ()) -> str:
    """Why a parameter counts among norms and biases; empty if it is a weight. `named` is from `no_weight_decay`."""
    if any(o.name in named for o in parameter.owners):
        return "named by model.no_weight_decay()"
    return next((why for o in parameter.owners if (why := _why(o, parameter))), "")


def _why(owner: Owner, parameter: Shared) -> str:
    p, attribute = parameter.tensor, owner.attribute
    if is_norm(owner.module):
        return "norm"
    if _BIAS.search(attribute):
        return "bias"
    if p.ndim < 2:
        return "scalar" if p.ndim == 0 else "vector"
    if isinstance(owner.module, MAPS):
        return "gain of a weight norm" if attribute == "weight_g" else ""
    if _PLACE.search(attribute):
        return "marks a place or a token"
    return "vector" if sum(size > 1 for size in p.shape) < 2 and (p.ndim > 2 or attribute != "weight") else ""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's layers, and those whose class is named after one."""
    if isinstance(module, NORMS):
        return True
    return not isinstance(module, MAPS) and bool(_NORM_CLASS.search(type(module).__name__))


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norms_and_biases: bool = False,
    adapt_norms_and_biases: bool = False,
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters for an optimizer; see the module's docstring for what is a norm or a bias.

    "No decay" and "no layer-wise adaptation" are two switches (papers disagree on each); `weight_decay` and `adapt` are therefore
    two settings of a group. Plain torch optimizers ignore `adapt`.

    Args:
        model: Any module; parameters with `requires_grad=False` are left out.
        weight_decay: Decay of the weights, in the optimizer's own unit.
        decay_norms_and_biases: Whether norms and biases decay too.
        adapt_norms_and_biases: Whether norms and biases get a layer-wise rate too.
        overrides: Shell patterns of parameter names to "weights" or "norms_and_biases", or to settings of a group of their own, such as
            `{"*.pos_embed": {"weight_decay": 0.01}}`; the last pattern that matches wins.

    Returns:
        One or two groups with keys `params`, `weight_decay`, `adapt`, and one for each override with settings; never an empty group.

    Raises:
        UserError: If a pattern matches nothing, or its value is no such group.
    """
    parameters, named = owned_parameters(model), no_weight_decay(model)
    chosen = chosen_by_name(parameters, check_overrides(overrides, ROLES))
    settings = {
        "weights": {"weight_decay": weight_decay, "adapt": True},
        "norms_and_biases": {"weight_decay": weight_decay if decay_norms_and_biases else 0.0, "adapt": adapt_norms_and_biases},
    }
    groups: dict[str, dict[str, Any]] = {role: {"params": [], **values} for role, values in settings.items()}
    for p in parameters:
        if not p.tensor.requires_grad:
            continue
        own = chosen.get(p.name, {})
        role = own.get("group") or ("norms_and_biases" if why_norm_or_bias(p, named) else "weights")
        extra = {key: value for key, value in own.items() if key != "group"}
        key = f"{role} {sorted(extra.items())}" if extra else role
        groups.setdefault(key, {"params": [], **settings[role], **extra})["params"].append(p.tensor)
    return [group for group in groups.values() if group["params"]]


def check_overrides(overrides: Overrides | None, known: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Overrides with each value as settings, of which `group` is one of the known.

    Raises:
        UserError: If a group is unknown.
    """
    plain = {pattern: {"group": value} if isinstance(value, str) else dict(value) for pattern, value in (overrides or {}).items()}
    for pattern, settings in plain.items():
        if settings.get("group", known[0]) not in known:
            raise UserError(f"override {pattern!r}: " + unknown("group", settings["group"], known))
    return plain
