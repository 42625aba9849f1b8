"""Batch norm over groups of samples, at the price of batch norm over all.

A group's samples lie together in memory, so no reshape makes K groups of C channels into the K x C channels that one call of a batch
norm could take; a copy into that order, and one back, takes 1.3 to 4.5 times as long as batch norm, and var_mean with addcmul 3 to 7 times.

On a CPU, torch's kernel over one group after the other, each writing into its part of one output, takes 1.01 to 1.15 times as long
(benchmarks/ghost_batch_norm.json): a group is still in the cache when it is normalised. The backward kernel takes no output, so that its
result is copied, which is most of the difference. On CUDA that would be 4 K launches: group_kernels.py has them all in five, with
one for the running statistics. Where neither can be had, groups are normalised one by one, and joined.
"""

import importlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bigbatch.core.hardware import kernels


class Running(NamedTuple):
    """Running statistics, changed in place."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,), unbiased
    tracked: Tensor  # groups that they hold, with those of this pass; 0-dim, int64
    momentum: float | None  # weight of a new group; None for a plain average

    def momenta(self, num_groups: int) -> list[float]:
        """Weights of the groups of this pass; waits for the device where momentum is None, as torch does."""
        if self.momentum is not None:
            return [self.momentum] * num_groups
        last = int(self.tracked)
        return [1.0 / seen for seen in range(last - num_groups + 1, last + 1)]


def normalise_groups(
    input: Tensor, sizes: list[int], weight: Tensor | None, bias: Tensor | None, running: Running | None, eps: float
) -> Tensor:
    """Normalise groups of samples, each by its own statistics, and take these into the running ones, group after group.

    Args:
        input: Shape (N, C) or (N, C, ...).
        sizes: Samples in each group, all but the last alike; they add up to N.
        weight: gamma, shape (C,), or None for 1.
        bias: beta, shape (C,), or None for 0.
        running: Statistics to follow; None for none.
        eps: Added to the variance.

    Returns:
        Shape and memory format of the input. Differentiable twice.
    """
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    writable = any(input.is_contiguous(memory_format=f) for f in formats)  # given other strides torch's kernel is wrong
    if len(sizes) > 1 and writable and not torch.compiler.is_compiling() and not _transformed():
        if (group_kernels := _kernels(input)) is not None:
            return _ByKernels.apply(input, weight, bias, running, sizes, eps, group_kernels)[0]  # type: ignore[no-any-return,no-untyped-call]
        if input.is_cpu:
            return _IntoOneOutput.apply(input, weight, bias, running, sizes, eps)[0]  # type: ignore[no-any-return,no-untyped-call]
    return _group_by_group(input, sizes, weight, bias, running, eps)


def _kernels(input: Tensor) -> Any:
    """The module of kernels, where they can be used."""
    if (
        input.device.type not in kernels.DEVICES
        or type(input) is not Tensor
        or input.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ):
        return None

    def module() -> Any:
        return importlib.import_module("bigbatch.layers.group_kernels")

    def try_out() -> None:
        module().try_out(input.device)

    works = kernels.kernels_work("ghost batch norm", None, input.device, try_out, instead="groups are normalised one by one")
    return module() if works else None


def _transformed() -> bool:
    """Whether `torch.func` or forward-mode derivatives are under way, for which the functions have no rules."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _group_by_group(
    input: Tensor, sizes: list[int], weight: Tensor | None, bias: Tensor | None, running: Running | None, eps: float
) -> Tensor:
    mean, var = (running.mean, running.var) if running is not None else (None, None)
    momenta = running.momenta(len(sizes)) if running is not None else [0.0] * len(sizes)
    outputs = [
        F.batch_norm(group, mean, var, weight, bias, training=True, momentum=momentum, eps=eps)
        for group, momentum in zip(torch.split(input, sizes), momenta, strict=True)
    ]
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _Groups(torch.autograd.Function):
    """`_group_by_group` with derivatives by a kernel; of second order by torch's own.

    `forward` is given the context, since torch.func's transformations do not come here: `setup_context` costs 60 microseconds a call.
    """

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        input, weight, bias, *statistics = ctx.saved_tensors
        wanted, others = ctx.needs_input_grad[:3], (None,) * (len(ctx.needs_input_grad) - 3)
        if grad is None:
            return None, None, None, *others
        if torch.is_grad_enabled():  # a graph of the gradient is asked for, so that it can be differentiated again
            output = _group_by_group(input, ctx.sizes, weight, bias, None, ctx.eps)
            of = [t for t, want in zip((input, weight, bias), wanted, strict=True) if want]
            grads = iter(torch.autograd.grad(output, of, grad, create_graph=True))
            return *(next(grads) if want else None for want in wanted), *others
        return *cls.gradients(ctx, grad, input, weight, statistics, wanted), *others

    @staticmethod
    def gradients(
        ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, statistics: list[Tensor], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Of input, weight and bias."""
        raise NotImplementedError


class _IntoOneOutput(_Groups):
    """By torch's own kernel, group after group, without the copies into one tensor."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None, sizes: list[int], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = next((t.dtype for t in (weight, running and running.mean) if t is not None), input.dtype)  # float32 beside bfloat16 inputs
        mean, var = (running.mean, running.var) if running is not None else (None, None)
        momenta = running.momenta(len(sizes)) if running is not None else [0.0] * len(sizes)
        output = torch.empty_like(input)
        means, inverse_stds = input.new_empty(2, len(sizes), input.shape[1], dtype=kept)
        for x, momentum, *out in zip(torch.split(input, sizes), momenta, torch.split(output, sizes), means, inverse_stds, strict=True):
            torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps, out=out)
        ctx.sizes, ctx.eps = sizes, eps
        ctx.save_for_backward(input, weight, bias, means, inverse_stds)
        ctx.mark_non_differentiable(means, inverse_stds)
        ctx.set_materialize_grads(False)
        return output, means, inverse_stds

    @staticmethod
    def gradients(
        ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, statistics: list[Tensor], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        means, inverse_stds = statistics
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
        return grad_input, grad_weight, grad_bias


class _ByKernels(_Groups):
    """All groups in one launch."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running | None,
        sizes: list[int],
        eps: float,
        kernels: Any,
    ) -> tuple[Tensor, Tensor]:
        output, statistics = kernels.forward(input, weight, bias, sizes, eps)
        if running is not None:
            kernels.update_running(*running, statistics, sizes, math.prod(input.shape[2:]))
        ctx.sizes, ctx.eps, ctx.kernels = sizes, eps, kernels
        ctx.dtype = next((t.dtype for t in (weight, bias) if t is not None), None)
        ctx.save_for_backward(input, weight, bias, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return output, statistics

    @staticmethod
    def gradients(
        ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, statistics: list[Tensor], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        of_input, of_weight, of_bias = wanted
        grad_input, sums = ctx.kernels.backward(
            grad, input, weight, *statistics, ctx.sizes, of_input=of_input, of_parameters=of_weight or of_bias
        )
        bias_sum, weight_sum = (None, None) if sums is None else sums.to(ctx.dtype)
        return grad_input, weight_sum if of_weight else None, bias_sum if of_bias else None
