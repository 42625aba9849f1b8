"""Which parameters Muon orthogonalises, how many matrices each holds, and which are left to AdamW."""

from typing import Any

from torch import Tensor, nn

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.groups import is_norm_or_bias


def muon_groups(model: nn.Module, *, lr: float, adam_lr: float, weight_decay: float = 0.0, head: str | None = None) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into matrices to orthogonalise and the rest.

    Args:
        model: Any module.
        lr: Rate of the orthogonalised matrices.
        adam_lr: Rate of the rest.
        weight_decay: Of the matrices; the rest does not decay.
        head: Name of the module that makes the outputs; by default the last one that holds a weight of two dimensions.

    Returns:
        Groups for `Muon`; never an empty one.

    Raises:
        UserError: If `head` is not a module of the model.

    >>> groups = muon_groups(nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2), nn.Linear(2, 2)), lr=0.05, adam_lr=0.02)
    >>> [(len(g["params"]), g["orthogonalise"], g["matrices"]) for g in groups]
    [(1, True, 1), (2, True, 4), (5, False, 1)]
    """
    plain = is_norm_or_bias(model)
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = (n for n, p in named.items() if not plain[n] and not isinstance(owners[id(p)], nn.Embedding | nn.EmbeddingBag))
    weights = dict.fromkeys(matrices)  # in order
    if head is not None and head not in dict(model.named_modules()):
        raise UserError(unknown("module", head, [name for name, _ in model.named_modules() if name]))
    last = model.get_submodule(head) if head is not None else owners[id(named[next(reversed(weights))])] if weights else model
    kept_out = {id(p) for p in last.parameters()}
    by_count: dict[int, list[Tensor]] = {}
    rest: list[Tensor] = []
    for name, p in named.items():
        if name in weights and id(p) not in kept_out:
            by_count.setdefault(stacked_matrices(owners[id(p)], name), []).append(p)
        else:
            rest.append(p)
    groups: list[dict[str, Any]] = [
        {"params": ps, "lr": lr, "weight_decay": weight_decay, "orthogonalise": True, "matrices": count} for count, ps in by_count.items()
    ]
    if rest:
        groups.append({"params": rest, "lr": adam_lr, "weight_decay": 0.0, "orthogonalise": False, "matrices": 1})
    return groups


def stacked_matrices(module: nn.Module, name: str) -> int:
    """How many matrices a module keeps below one another in the weight of that name."""
    if isinstance(module, nn.RNNBase):
        return {"LSTM": 4, "GRU": 3}.get(module.mode, 1) if "weight_hr" not in name else 1
    if isinstance(module, nn.LSTMCell | nn.GRUCell):
        return 4 if isinstance(module, nn.LSTMCell) else 3
    return 3 if isinstance(module, nn.MultiheadAttention) and name.endswith("in_proj_weight") else 1
