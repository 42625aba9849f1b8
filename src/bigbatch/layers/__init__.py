"""Layers whose meaning depends on the batch."""

from bigbatch.layers.ghost_batch_norm import GhostBatchNorm, convert_batch_norm, ghost_groups
from bigbatch.layers.split_batch_norm import SplitBatchNorm, adversarial_stream, convert_split_batch_norm, drop_auxiliary, main_state_dict

__all__ = [
    "GhostBatchNorm",
    "SplitBatchNorm",
    "adversarial_stream",
    "convert_batch_norm",
    "convert_split_batch_norm",
    "drop_auxiliary",
    "ghost_groups",
    "main_state_dict",
]
