"""Batch norm over groups of samples, at the price of batch norm over all.

A group's samples lie together in memory, so no reshape makes K groups of C channels into the K x C channels that one call of a batch
norm could take; a copy into that order, and one back, takes 1.3 to 4.5 times as long as batch norm, and var_mean with addcmul 3 to 7 times.
Torch's kernel over one group after the other, each writing into its part of one output, takes 1.01 to 1.15 times as long
(benchmarks/ghost_batch_norm.json): a group is still in the cache when it is normalised. The backward kernel takes no output, so that its
result is copied, which is most of the difference.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise_groups(
    input: Tensor,
    sizes: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momenta: Sequence[float],
    eps: float,
) -> Tensor:
    """Normalise groups of samples, each by its own statistics, and take these into the running ones, group after group.

    Args:
        input: Shape (N, C) or (N, C, ...).
        sizes: Samples in each group; they add up to N.
        weight: gamma, shape (C,), or None for 1.
        bias: beta, shape (C,), or None for 0.
        running_mean: Shape (C,), changed in place; None to keep none.
        running_var: The same, unbiased.
        momenta: For each group its weight in the running statistics.
        eps: Added to the variance.

    Returns:
        Shape and memory format of the input. Differentiable twice.
    """
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    writable = input.is_cpu and any(input.is_contiguous(memory_format=f) for f in formats)  # given other strides the kernel is wrong
    if len(sizes) == 1 or not writable or torch.compiler.is_compiling() or _transformed():
        return _group_by_group(input, sizes, weight, bias, running_mean, running_var, momenta, eps)
    return _IntoOneOutput.apply(input, weight, bias, running_mean, running_var, sizes, momenta, eps)[0]  # type: ignore[no-any-return,no-untyped-call]


def _transformed() -> bool:
    """Whether `torch.func` or forward-mode derivatives are under way, for which the function has no rules."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _group_by_group(
    input: Tensor,
    sizes: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    momenta: Sequence[float],
    eps: float,
) -> Tensor:
    outputs = [
        F.batch_norm(group, mean, var, weight, bias, training=True, momentum=momentum, eps=eps)
        for group, momentum in zip(torch.split(input, sizes), momenta, strict=True)
    ]
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _IntoOneOutput(torch.autograd.Function):
    """`_group_by_group` without the copies into one tensor, forward and backward."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        sizes: list[int],
        momenta: Sequence[float],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = next((t.dtype for t in (weight, mean) if t is not None), input.dtype)  # float32 beside bfloat16 inputs
        output = torch.empty_like(input)
        means, inverse_stds = input.new_empty(2, len(sizes), input.shape[1], dtype=kept)
        for x, momentum, *out in zip(torch.split(input, sizes), momenta, torch.split(output, sizes), means, inverse_stds, strict=True):
            torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps, out=out)
        return output, means, inverse_stds

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, _, _, ctx.sizes, _, ctx.eps = inputs
        ctx.save_for_backward(input, weight, bias, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        input, weight, bias, means, inverse_stds = ctx.saved_tensors
        wanted, others = ctx.needs_input_grad[:3], (None,) * 5
        if grad is None:
            return None, None, None, *others
        if torch.is_grad_enabled():  # a graph of the gradient is asked for, so that it can be differentiated again
            output = _group_by_group(input, ctx.sizes, weight, bias, None, None, [0.0] * len(ctx.sizes), ctx.eps)
            of = [t for t, want in zip((input, weight, bias), wanted, strict=True) if want]
            grads = iter(torch.autograd.grad(output, of, grad, create_graph=True))
            return *(next(grads) if want else None for want in wanted), *others
        grad_input = torch.empty_like(input) if wanted[0] else None
        parts = [] if grad_input is None else torch.split(grad_input, ctx.sizes)
        sums: list[tuple[Tensor | None, ...]] = []
        for i, (x, dy) in enumerate(zip(torch.split(input, ctx.sizes), torch.split(grad, ctx.sizes), strict=True)):
            dx, *sums_of_group = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, None, None, means[i], inverse_stds[i], True, ctx.eps, wanted
            )
            if grad_input is not None:
                parts[i].copy_(dx)  # this kernel has no output argument
            sums.append(tuple(sums_of_group))
        grad_weight, grad_bias = (
            torch.stack(column).sum(0) if want else None for column, want in zip(zip(*sums, strict=True), wanted[1:], strict=True)
        )
        return grad_input, grad_weight, grad_bias, *others
