"""Precision of a recipe: the type of weights and inputs, and autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Precision of a recipe to the type of the weights; bfloat16 is autocast over float32 weights."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
