"""Finding the batch norms of a model, and putting others in their place."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from bigbatch.core.checks import UserError

Module = TypeVar("Module", bound=nn.Module)
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
"""Base class of all batch norms of torch and of ours."""


def batch_norms(model: nn.Module) -> dict[str, AnyBatchNorm]:
    """Every batch-norm layer of a model by name: those whose meaning depends on the batch."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AnyBatchNorm)}


def settings_of(norm: AnyBatchNorm) -> dict[str, Any]:
    """Constructor arguments of the ghost batch norm that does what `norm` does.

    Raises:
        UserError: If `norm` is lazy and has not seen an input yet.
    """
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin) and norm.has_uninitialized_params():
        raise UserError(f"{type(norm).__name__}: has no size yet; pass one input through the model before it is converted")
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    own = {"ghost_batch": getattr(norm, "ghost_batch", None), "bias": not norm.affine or norm.bias is not None}
    return {name: getattr(norm, name) for name in names} | own


def same_rank(norm: AnyBatchNorm, kinds: Mapping[type[AnyBatchNorm], type[Module]], otherwise: type[Module]) -> type[Module]:
    """The class for what torch's `norm` takes: inputs of one, two or three axes beside samples and channels, or any."""
    return next((new for kind, new in kinds.items() if isinstance(norm, kind)), otherwise)


def take_over(new: AnyBatchNorm, old: AnyBatchNorm) -> AnyBatchNorm:
    """Give `new` the parameters, buffers and mode of `old`; returns `new`."""
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, part, getattr(old, part))
    return new.train(old.training)


def replace_batch_norms(model: Module, new_of: Callable[[AnyBatchNorm], AnyBatchNorm]) -> Module:
    """Put another layer in the place of every batch norm, in place; it takes over parameters, buffers and mode.

    Args:
        model: Any module. A layer that it holds in several places is replaced once, by one layer.
        new_of: New layer for an old one; may return the old one.

    Returns:
        The same model, or the new layer if the model is a batch norm itself.
    """
    made: dict[AnyBatchNorm, AnyBatchNorm] = {}
    for name, old in list(model.named_modules(remove_duplicate=False)):
        parent, _, leaf = name.rpartition(".")
        if not isinstance(old, AnyBatchNorm) or isinstance(model.get_submodule(parent) if name else None, AnyBatchNorm):
            continue  # a batch norm within one belongs to it
        if old not in made:
            made[old] = take_over(new_of(old), old)
        if not name:
            return made[old]  # type: ignore[return-value]
        setattr(model.get_submodule(parent), leaf, made[old])
    return model
