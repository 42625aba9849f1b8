r"""Split batch norm: clean and adversarial samples are normalised apart, each with statistics, gamma and beta of its own.

Paper:   Xie, Tan, Gong, Wang, Yuille, Le 2020, Adversarial Examples Improve Image Recognition, arXiv:1911.09665, Section 4.1, Algorithm 1.
Formula: with main and auxiliary batch norms in every layer, all else shared,
             loss = mean over clean loss(x; main) + mean over adversarial loss(x_adv; auxiliary);
         x_adv is made through the auxiliary ones, and evaluation goes through the main ones.
Units:   samples.
Differs: nowhere. Each stream keeps ghost batches of its own where the layer has them.

The main stream's keys in a state dict are those of `nn.BatchNorm`; the auxiliary's come beside them, under `auxiliary.`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.layers.batch_norms import AnyBatchNorm, Module, batch_norms, replace_batch_norms, same_rank, settings_of, take_over
from bigbatch.layers.ghost_batch_norm import GhostBatchNorm, GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, ghost_like

PAPER = Paper(
    method="Split batch norm",
    title="Adversarial Examples Improve Image Recognition",
    authors="Xie et al.",
    year=2019,
    arxiv="1911.09665",
    where="Section 4.1",
)


class SplitBatchNorm(GhostBatchNorm):
    """Two batch norms of one shape: the module's own for clean samples, `auxiliary` for adversarial ones.

    Every pass, in training and in evaluation, is clean unless it is made within `adversarial_stream`.

    Args:
        num_features: C, of inputs of shape (N, C) or (N, C, ...).
        **settings: Those of `GhostBatchNorm`, for both streams; `ghost_batch` None for groups of a stream's whole part of the pass.

    Raises:
        UserError: As `GhostBatchNorm`; in a pass, if the streams part where one of them would be left empty.

    >>> layer = SplitBatchNorm(1, ghost_batch=None)
    >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> with adversarial_stream(layer, after=2):
    ...     layer(x).flatten().round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    >>> [round(m.running_mean.item(), 4) for m in (layer, layer.auxiliary)]
    [0.1, 1.1]
    """

    def __init__(self, num_features: int, **settings: Any) -> None:
        super().__init__(num_features, **settings)
        self.auxiliary = GhostBatchNorm(num_features, **settings)
        self.num_clean: int | None = None
        """Samples of the pass that come before the first adversarial one; None for all. Set by `adversarial_stream`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each stream by itself; the output has the input's shape and memory format."""
        if self.num_clean is None:
            return super().forward(input)
        if self.num_clean == 0:
            return self.auxiliary(input)  # type: ignore[no-any-return]
        if self.num_clean >= len(input):
            raise UserError(
                f"after = {self.num_clean}: must be smaller than the {len(input)} samples of the pass; leave `adversarial_stream` out of a "
                "pass that is all clean"
            )
        return torch.cat([super().forward(input[: self.num_clean]), self.auxiliary(input[self.num_clean :])])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """A checkpoint of the unsplit model gives both streams what it has."""
        if not any(key.startswith(f"{prefix}auxiliary.") for key in state_dict):
            own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
            state_dict.update({f"{prefix}auxiliary.{key.removeprefix(prefix)}": value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SplitBatchNorm1d(SplitBatchNorm, GhostBatchNorm1d):
    """`SplitBatchNorm` of inputs (N, C) or (N, C, L)."""


class SplitBatchNorm2d(SplitBatchNorm, GhostBatchNorm2d):
    """`SplitBatchNorm` of inputs (N, C, H, W)."""


class SplitBatchNorm3d(SplitBatchNorm, GhostBatchNorm3d):
    """`SplitBatchNorm` of inputs (N, C, D, H, W)."""


KINDS = {nn.BatchNorm1d: SplitBatchNorm1d, nn.BatchNorm2d: SplitBatchNorm2d, nn.BatchNorm3d: SplitBatchNorm3d}


@contextmanager
def adversarial_stream(model: nn.Module, *, after: int = 0) -> Iterator[None]:
    """Passes within are adversarial: they use and update the auxiliary batch norms, and leave the main ones alone.

    Args:
        model: Its batch norms split by `convert_split_batch_norm`; a model without any may be given too.
        after: So many samples at the head of each pass are clean; 0 for none. Both streams then go through the model in one pass.

    Raises:
        UserError: If the model has batch norms and none is split, or `after` is negative.
    """
    split = [m for m in model.modules() if isinstance(m, SplitBatchNorm)]
    if after < 0:
        raise UserError(f"after = {after}: must not be negative; give the number of clean samples, or leave it out")
    if not split and (unsplit := batch_norms(model)):
        raise UserError(f"batch norm {next(iter(unsplit))!r}: is not split, so both streams would share it; call convert_split_batch_norm")
    before = [m.num_clean for m in split]
    for m in split:
        m.num_clean = after
    try:
        yield
    finally:
        for m, num_clean in zip(split, before, strict=True):
            m.num_clean = num_clean


def convert_split_batch_norm(model: Module) -> Module:
    """Split every batch norm of a model, in place: the main stream keeps its parameters and buffers, the auxiliary gets copies.

    Ghost batches stay as they are, in each stream. An optimizer that was built before does not know of the auxiliary parameters.

    Args:
        model: Any module.

    Returns:
        The same model, or the new layer if the model is a batch norm itself.
    """

    def split(old: AnyBatchNorm) -> AnyBatchNorm:
        if isinstance(old, SplitBatchNorm):
            return old
        new = same_rank(old, KINDS, SplitBatchNorm)(**settings_of(old))
        take_over(new.auxiliary, deepcopy(old))
        return new

    return replace_batch_norms(model, split)


def drop_auxiliary(model: Module) -> Module:
    """Undo `convert_split_batch_norm`, in place: only the main stream is left, as ghost batch norm.

    Its state dict then loads into the model as it was before any conversion.

    Args:
        model: Any module.

    Returns:
        The same model, or the new layer if the model is a batch norm itself.
    """

    def main(old: AnyBatchNorm) -> AnyBatchNorm:
        return ghost_like(old, settings_of(old)["ghost_batch"]) if isinstance(old, SplitBatchNorm) else old

    return replace_batch_norms(model, main)


def main_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The main stream's part of a split model's state dict: that of the model without the split."""
    return {key: value for key, value in state_dict.items() if "auxiliary" not in key.split(".")}
