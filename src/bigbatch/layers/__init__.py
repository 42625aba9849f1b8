"""Layers whose meaning depends on the batch."""

from bigbatch.layers.ghost_batch_norm import GhostBatchNorm, convert_batch_norm, ghost_groups

__all__ = ["GhostBatchNorm", "convert_batch_norm", "ghost_groups"]
