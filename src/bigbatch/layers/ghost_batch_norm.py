r"""Ghost batch norm: normalise over fixed groups of samples, however large the batch is.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 4.2, Algorithm 1.
Formula: split the batch into K groups of `ghost_batch` samples; group i is normalised by its own mean_i and var_i;
             mean_run <- (1 - a)^K mean_run + sum_i (1 - a)^(K - i) a mean_i,   the same for var_run
         that is: one ordinary running update per group, in order. gamma and beta are shared.
         Evaluation uses mean_run and var_run on the whole input, and never splits.
Units:   ghost_batch in samples.
Differs: tracks the unbiased variance (as torch does), not the standard deviation. The exponent is K; the paper prints |B_S|.
         A rest smaller than half a group joins the group before it, so that no group has only a few samples.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigbatch.core.checks import check_positive
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Ghost batch norm",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 4.2",
)
Module = TypeVar("Module", bound=nn.Module)
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
"""Base class of all batch norms of torch and of ours."""


def ghost_groups(num_samples: int, ghost_batch: int) -> list[int]:
    """Sizes of the groups that a batch is normalised in.

    Args:
        num_samples: Samples in the batch.
        ghost_batch: Samples in one group.

    Returns:
        Sizes, all `ghost_batch` except the last, which lies between half and one and a half of it (or is the whole batch).

    Raises:
        UserError: If either is not positive.

    >>> ghost_groups(512, 128), ghost_groups(600, 128), ghost_groups(520, 128), ghost_groups(20, 128)
    ([128, 128, 128, 128], [128, 128, 128, 128, 88], [128, 128, 128, 136], [20])
    """
    check_positive("num_samples", num_samples)
    check_positive("ghost_batch", ghost_batch)
    full, rest = divmod(num_samples, ghost_batch)
    sizes = [ghost_batch] * full
    if rest and (not sizes or 2 * rest >= ghost_batch):
        sizes.append(rest)
    elif rest:
        sizes[-1] += rest
    return sizes


class GhostBatchNorm(AnyBatchNorm):
    """Batch norm over groups of `ghost_batch` consecutive samples of the input, shape (N, C) or (N, C, ...).

    Args:
        num_features: C.
        ghost_batch: Samples in one group, or None for the whole input (plain batch norm).
        eps: Added to the variance.
        momentum: a in the formula: weight of a new group in the running statistics; None for a plain average over groups.
        affine: Whether to learn gamma and beta.
        track_running_stats: Whether to keep running statistics for evaluation.

    Raises:
        UserError: If `ghost_batch` is not positive.

    >>> layer = GhostBatchNorm(1, ghost_batch=2)
    >>> layer(torch.tensor([[0.0], [2.0], [10.0], [12.0]])).flatten().round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch: int | None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if ghost_batch is not None:
            check_positive("ghost_batch", ghost_batch)
        self.ghost_batch = ghost_batch

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the output has the input's shape and memory format."""
        use_running = not self.training and self.track_running_stats
        if use_running or self.ghost_batch is None:
            return self._normalise(input)
        groups = ghost_groups(len(input), self.ghost_batch)
        if len(groups) == 1:
            return self._normalise(input)
        return torch.cat([self._normalise(group) for group in torch.split(input, groups)])

    def _normalise(self, group: Tensor) -> Tensor:
        update = self.training and self.track_running_stats
        momentum = self.momentum if self.momentum is not None else 0.0
        if update and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            group,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            training=self.training or not self.track_running_stats,
            momentum=momentum,
            eps=self.eps,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        """Any input of shape (N, C, ...) will do."""

    def extra_repr(self) -> str:
        """Constructor arguments, for `print(model)`."""
        return f"{super().extra_repr()}, ghost_batch={self.ghost_batch}"  # type: ignore[no-untyped-call]


def batch_norms(model: nn.Module) -> dict[str, AnyBatchNorm]:
    """Every batch-norm layer of a model by name: those whose meaning depends on the batch."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AnyBatchNorm)}


def settings_of(norm: AnyBatchNorm) -> dict[str, Any]:
    """Constructor arguments of the ghost batch norm that does what `norm` does."""
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {name: getattr(norm, name) for name in names} | {"ghost_batch": getattr(norm, "ghost_batch", None)}


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


def convert_batch_norm(model: Module, ghost_batch: int | None) -> Module:
    """Replace every batch norm of a model by ghost batch norm, in place, sharing its parameters and buffers.

    Args:
        model: Any module.
        ghost_batch: Samples in one group, or None for the whole forward pass.

    Returns:
        The same model, or the new layer if the model is a batch norm itself.
    """

    def ghost(old: AnyBatchNorm) -> AnyBatchNorm:
        if not isinstance(old, GhostBatchNorm):
            return GhostBatchNorm(**settings_of(old) | {"ghost_batch": ghost_batch})
        for layer in old.modules():
            if isinstance(layer, GhostBatchNorm):
                layer.ghost_batch = ghost_batch
        return old

    return replace_batch_norms(model, ghost)
