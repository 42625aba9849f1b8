"""Layers whose meaning depends on the batch, and batch norm in integers."""

from bigbatch.layers.ghost_batch_norm import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_batch_norm,
    ghost_groups,
)
from bigbatch.layers.integer_file import save_integers
from bigbatch.layers.integer_network import Quantizer, float_twin, quantize_batch_norm
from bigbatch.layers.precise_statistics import recompute_statistics
from bigbatch.layers.quantized_batch_norm import QuantizedBatchNorm
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
    "QuantizedBatchNorm",
    "Quantizer",
    "SplitBatchNorm",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "SplitBatchNorm3d",
    "adversarial_stream",
    "convert_batch_norm",
    "convert_split_batch_norm",
    "drop_auxiliary",
    "float_twin",
    "ghost_groups",
    "main_state_dict",
    "quantize_batch_norm",
    "recompute_statistics",
    "save_integers",
]
