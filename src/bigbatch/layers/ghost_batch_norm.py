r"""Ghost batch norm: normalise over fixed groups of samples, however large the batch is.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 4.2, Algorithm 1.
Formula: split the batch into K groups of `ghost_batch` samples; group i is normalised by its own mean_i and var_i;
             mean_run <- (1 - a)^K mean_run + sum_i (1 - a)^(K - i) a mean_i,   the same for var_run
         that is: one ordinary running update per group, in order. gamma and beta are shared.
         Evaluation uses mean_run and var_run on the whole input, or its own statistics if none are tracked, and never splits.
Units:   ghost_batch in samples.
Differs: tracks the unbiased variance (as torch does), not the standard deviation. The exponent is K; the paper prints |B_S|.
         A rest smaller than half a group, or of one sample, joins the group before it, so that no group has only a few samples.
Cost:    that of torch's batch norm; see normalise_groups.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigbatch.core.checks import check_group, check_positive
from bigbatch.core.paper import Paper
from bigbatch.layers.batch_norms import AnyBatchNorm, Module, replace_batch_norms, same_rank, settings_of
from bigbatch.layers.normalise_groups import Running, normalise_groups

PAPER = Paper(
    method="Ghost batch norm",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 4.2",
)


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
    return _sizes(num_samples, ghost_batch)


def _sizes(num_samples: int, ghost_batch: int) -> list[int]:
    """Without checks, which under torch.compile a symbolic size would not pass."""
    full, rest = num_samples // ghost_batch, num_samples % ghost_batch  # divmod takes no symbols
    sizes = [ghost_batch] * full
    if rest and (not sizes or (2 * rest >= ghost_batch and rest > 1)):
        sizes.append(rest)
    elif rest:
        sizes[-1] += rest
    return sizes


class GhostBatchNorm(AnyBatchNorm):
    """Batch norm over groups of `ghost_batch` consecutive samples of the input, shape (N, C) or (N, C, ...).

    A batch that is no larger than `ghost_batch` is one group. `GhostBatchNorm1d`, `2d` and `3d` are also torch's batch norms of these
    names, for code that asks what a layer is, and take the same inputs only.

    Args:
        num_features: C.
        ghost_batch: Samples in one group, 2 or more; None for the whole input (plain batch norm).
        eps: Added to the variance.
        momentum: a in the formula: weight of a new group in the running statistics; None for a plain average over groups.
        affine: Whether to learn gamma and beta.
        track_running_stats: Whether to keep running statistics for evaluation. Without them, evaluation takes those of the whole input,
            as torch's batch norm does: which samples are evaluated together matters then, but not their order.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.
        bias: Whether to learn beta, if `affine`.

    Raises:
        UserError: If `ghost_batch` is below 2.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if affine and not bias:
            self.register_parameter("bias", None)  # an argument of torch's own only since 2.13
        if ghost_batch is not None:
            check_group("ghost_batch", ghost_batch)
        self.ghost_batch = ghost_batch

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the output has the input's shape and memory format."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        split = self.training and self.ghost_batch is not None and len(input) > self.ghost_batch
        sizes = _sizes(len(input), self.ghost_batch or 0) if split else [len(input)]
        running = None
        if self.training and self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(len(sizes))
            running = Running(self.running_mean, self.running_var, self.num_batches_tracked, self.momentum)
        return normalise_groups(input, sizes, self.weight, self.bias, running, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input of shape {tuple(input.shape)}: must have samples and channels; give (N, C) or (N, C, ...)")

    def extra_repr(self) -> str:
        """Constructor arguments, for `print(model)`."""
        return f"{super().extra_repr()}, ghost_batch={self.ghost_batch}"  # type: ignore[no-untyped-call]


class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """`GhostBatchNorm` of inputs (N, C) or (N, C, L)."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """`GhostBatchNorm` of inputs (N, C, H, W)."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """`GhostBatchNorm` of inputs (N, C, D, H, W)."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim


KINDS = {nn.BatchNorm1d: GhostBatchNorm1d, nn.BatchNorm2d: GhostBatchNorm2d, nn.BatchNorm3d: GhostBatchNorm3d}


def ghost_like(norm: AnyBatchNorm, ghost_batch: int | None) -> GhostBatchNorm:
    """A ghost batch norm with the settings of `norm`, for the same inputs; `GhostBatchNorm` itself for a layer of any rank."""
    return same_rank(norm, KINDS, GhostBatchNorm)(**settings_of(norm) | {"ghost_batch": ghost_batch})


def convert_batch_norm(model: Module, ghost_batch: int | None) -> Module:
    """Replace every batch norm of a model by ghost batch norm, in place, sharing its parameters and buffers.

    State dicts keep their keys, and load both ways. A layer of torch.nn.SyncBatchNorm then normalises over the worker's own groups.

    Args:
        model: Any module.
        ghost_batch: Samples in one group, 2 or more; None for the whole forward pass.

    Returns:
        The same model, or the new layer if the model is a batch norm itself.

    Raises:
        UserError: If `ghost_batch` is below 2, or a batch norm is lazy and has not seen an input yet.
    """
    if ghost_batch is not None:
        check_group("ghost_batch", ghost_batch)

    def ghost(old: AnyBatchNorm) -> AnyBatchNorm:
        if not isinstance(old, GhostBatchNorm):
            return ghost_like(old, ghost_batch)
        for layer in old.modules():  # the streams of split batch norm
            if isinstance(layer, GhostBatchNorm):
                layer.ghost_batch = ghost_batch
        return old

    return replace_batch_norms(model, ghost)
