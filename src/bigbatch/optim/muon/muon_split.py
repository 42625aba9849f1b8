"""Which parameters Muon orthogonalises, how many matrices each holds, and which are left to AdamW.

To Muon go the matrices of `linear_maps.py`, but for those of the output layer (`output_layer.py`); to AdamW goes all else. A tensor that
several modules share is Muon's only if it is a hidden matrix for each of them: an embedding that is tied to the output layer is AdamW's.
"""

from typing import Any

from torch import nn

from bigbatch.core.tensors.groups import Overrides, check_overrides
from bigbatch.core.tensors.matrices import matrix_shape
from bigbatch.core.tensors.owners import Shared, chosen_by_name, owned_parameters
from bigbatch.optim.muon.linear_maps import Use, first_convolution, use_of
from bigbatch.optim.muon.output_layer import output_layer

GROUPS = ("muon", "adam")


def muon_groups(
    model: nn.Module,
    *,
    lr: float,
    adam_lr: float,
    weight_decay: float = 0.0,
    head: str | None = None,
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into matrices to orthogonalise and the rest; `describe_groups` shows the split.

    Args:
        model: Any module.
        lr: Rate of the orthogonalised matrices.
        adam_lr: Rate of the rest.
        weight_decay: Of the matrices; the rest does not decay.
        head: Name of the module that makes the outputs; by default what `output_layer` finds.
        overrides: Shell patterns of parameter names to "muon" or "adam", or to settings of a group of their own, such as
            `{"*.fused.weight": {"group": "muon", "matrices": 2}}` (`layout`: see `as_matrices`); the last that matches wins.

    Returns:
        Groups for `Muon`; never an empty one.

    Raises:
        UserError: If `head` is not a module of the model, a pattern matches nothing, or a parameter that it gives to Muon has no matrix.

    >>> groups = muon_groups(nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2), nn.Linear(2, 2)), lr=0.05, adam_lr=0.02)
    >>> [(len(g["params"]), g["orthogonalise"], g["matrices"]) for g in groups]
    [(1, True, 1), (2, True, 4), (5, False, 1)]
    """
    by_muon: dict[str, dict[str, Any]] = {}
    by_adam: dict[str, dict[str, Any]] = {}
    for p, use, own in muon_uses(model, head=head, overrides=overrides):
        if not p.tensor.requires_grad:
            continue
        if use.matrices:
            group = {"lr": lr, "weight_decay": weight_decay, "orthogonalise": True, "matrices": use.matrices, "layout": use.layout}
        else:
            group = {"lr": adam_lr, "weight_decay": 0.0, "orthogonalise": False, "matrices": 1, "layout": "rows"}
        group |= {key: value for key, value in own.items() if key not in ("group", "matrices", "layout")}
        groups = by_muon if use.matrices else by_adam
        groups.setdefault(str(group), {"params": [], **group})["params"].append(p.tensor)
    return [*by_muon.values(), *by_adam.values()]


def muon_uses(model: nn.Module, *, head: str | None, overrides: Overrides | None) -> list[tuple[Shared, Use, dict[str, Any]]]:
    """Every parameter, frozen ones too, with its use (no matrices: AdamW's) and the settings that overrides give it."""
    parameters, first = owned_parameters(model), first_convolution(model)
    chosen = chosen_by_name(parameters, check_overrides(overrides, GROUPS))
    output = output_layer(model, head)
    inside = {id(p) for name in output.names for p in model.get_submodule(name).parameters()}
    uses = []
    for p in parameters:
        use, own = use_of(p, first_conv=first), chosen.get(p.name, {})
        if id(p.tensor) in inside and use.matrices:
            use = Use(f"output layer, {output.why}")
        if own:
            use = _overridden(p, use, own)
        uses.append((p, use, own))
    return uses


def _overridden(parameter: Shared, use: Use, own: dict[str, Any]) -> Use:
    if own.get("group") == "adam" or (not own.get("group") and not use.matrices):
        return Use("override") if own.get("group") else use
    matrices, layout = own.get("matrices", use.matrices or 1), own.get("layout", use.layout)
    matrix_shape(parameter.tensor.shape, matrices, layout)
    return Use("override", matrices, layout)
