"""Layers whose meaning depends on the batch, and batch norm in integers."""

from bigbatch.layers.ghost_batch_norm import GhostBatchNorm, convert_batch_norm, ghost_groups
from bigbatch.layers.integer_file import save_integers
from bigbatch.layers.integer_network import Quantizer, float_twin, quantize_batch_norm
from bigbatch.layers.quantized_batch_norm import QuantizedBatchNorm

__all__ = [
    "GhostBatchNorm",
    "QuantizedBatchNorm",
    "Quantizer",
    "convert_batch_norm",
    "float_twin",
    "ghost_groups",
    "quantize_batch_norm",
    "save_integers",
]
