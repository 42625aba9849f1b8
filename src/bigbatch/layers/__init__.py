"""Layers whose meaning depends on the batch."""

from bigbatch.layers.ghost_batch_norm import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_batch_norm,
    ghost_groups,
)
from bigbatch.layers.precise_statistics import recompute_statistics
from bigbatch.layers.split_batch_norm import (
    SplitBatchNorm,
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNorm3d,
    adversarial_stream,
    convert_split_batch_norm,
    drop_auxiliary,
    main_state_dict,
)

__all__ = [
    "GhostBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "SplitBatchNorm",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "SplitBatchNorm3d",
    "adversarial_stream",
    "convert_batch_norm",
    "convert_split_batch_norm",
    "drop_auxiliary",
    "ghost_groups",
    "main_state_dict",
    "recompute_statistics",
]
