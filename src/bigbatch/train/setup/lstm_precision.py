"""LSTMs under bfloat16 autocast on processors without bfloat16 instructions.

oneDNN has no bfloat16 kernel for an LSTM there, and torch 2.13 raises ("could not create a primitive descriptor") instead of falling back.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def cpu_computes_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor (AVX-512 or AMX on x86)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Float32LSTM(nn.LSTM):
    """An LSTM that computes in float32 also under autocast."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As `torch.nn.LSTM.forward`."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(_widened(input), None if hx is None else tuple(map(_widened, hx)))


def keep_lstms_in_float32(model: nn.Module) -> int:
    """Let the model's LSTMs compute in float32 under autocast. Their weights and other layers are not changed.

    Returns:
        How many there are.
    """
    lstms = [module for module in model.modules() if type(module) is nn.LSTM]
    for lstm in lstms:
        lstm.__class__ = Float32LSTM
    return len(lstms)


def _widened(value: torch.Tensor | PackedSequence) -> Any:
    return value.float()
