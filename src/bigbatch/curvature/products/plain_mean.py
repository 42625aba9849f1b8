"""Whether a scalar loss is the plain mean over its samples, which is what pooling over micro-batches takes it for.

A mean over the targets that are not ignored, or one weighted by class, has another denominator in each micro-batch. The mean of such means
is another loss: with `ignore_index` or class weights it was off by half and more.
"""

from typing import Any

import torch
from torch import Tensor

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import tensors_of

TOLERANCE = 1e-4
"""Relative difference that rounding may make in float32."""


def check_plain_mean(loss: Any, outputs: Any, targets: Any, value: Tensor, samples: int) -> str | None:
    """Compare a scalar loss with the mean over two parts of its samples, a third and the rest.

    Args:
        loss: Of outputs and targets.
        outputs: Of the model for the samples.
        targets: Of the samples.
        value: What the loss gave for all of them.
        samples: How many there are.

    Returns:
        What is wrong, in words; None if nothing is, or it can't be told: one loss a sample, one sample, or outputs that can't be cut.
    """
    if value.dim() or samples < 2 or any(t.dim() == 0 or len(t) != samples for t in tensors_of((outputs, targets))):
        return None
    first, parts = max(1, samples // 3), []
    try:
        with torch.no_grad():
            for cut in (slice(0, first), slice(first, samples)):
                parts.append(float(loss(_cut(outputs, cut), _cut(targets, cut))))
    except Exception:  # a loss that needs its whole batch, or outputs of a type of their own
        return None
    mean, whole = (first * parts[0] + (samples - first) * parts[1]) / samples, float(value.detach())
    if abs(mean - whole) <= TOLERANCE * max(abs(whole), abs(parts[0]), abs(parts[1])):
        return None
    return f"{whole:.6g} of {samples} samples, and {parts[0]:.6g} and {parts[1]:.6g} of {first} and {samples - first} of them"


def not_plain(what: str) -> UserError:
    """The error."""
    return UserError(
        f"loss: a scalar that is not the plain mean over samples ({what}), so it can't be pooled over micro-batches, batches or workers: "
        "ignore_index and class weights change its denominator. Give one loss a sample, shape (n,), such as those of reduction='none' "
        "times the number of samples over the sum of all weights; or give all samples as one batch, without micro_batch"
    )


def _cut(value: Any, cut: slice) -> Any:
    if isinstance(value, Tensor):
        return value.detach()[cut]
    if isinstance(value, dict):
        return type(value)(**{key: _cut(part, cut) for key, part in value.items()})
    if isinstance(value, tuple | list):
        parts = [_cut(part, cut) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
