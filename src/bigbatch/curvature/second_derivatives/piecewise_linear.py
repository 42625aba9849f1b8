"""Layers that are linear but for a choice: their second derivatives are nothing, and cost nothing.

Of ReLU and max-pooling the choice (which entries pass) is as good as constant, and what is left is linear, y = L x, with the gradient
gx = L^T gy, of which the gradient is L again. torch also returns the gradient towards the choice: a tensor of zeros, of the size of the
input, which is added to others and sent on through the network.
"""

from typing import Any

import torch
from torch import Tensor

from bigbatch.curvature.second_derivatives.convolutions import apply, each

Pooling = tuple[list[int], list[int], list[int], list[int], bool]  # kernel, stride, padding, dilation, ceil_mode


def relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """As `torch.relu`; None for what is left to torch: what is not differentiated, or writes over its input."""
    if inplace or not input.requires_grad:
        return None
    return apply(_ReLU, input)  # type: ignore[no-any-return]


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """As `torch.nn.functional.max_pool2d`; None for what is left to torch: what is not differentiated, or also wants the indices."""
    if return_indices or not input.requires_grad:
        return None
    kernel = each(kernel_size, 2)
    pooling = (kernel, each(stride, 2) if stride else kernel, each(padding, 2), each(dilation, 2), ceil_mode)
    return apply(_MaxPool, input, pooling)  # type: ignore[no-any-return]


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return apply(_Gate, gy, y.detach())  # type: ignore[no-any-return]


class _Gate(torch.autograd.Function):
    """What comes where y is above zero: its own transpose."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return torch.ops.aten.threshold_backward(t, y, 0)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gt: Tensor) -> tuple[Tensor, None]:
        return apply(_Gate, gt, *ctx.saved_tensors), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pooling: Pooling) -> Tensor:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *pooling)
        ctx.save_for_backward(x, indices)
        ctx.pooling = pooling
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        x, indices = ctx.saved_tensors
        return apply(_Spread, gy, x.detach(), indices, ctx.pooling), None


class _Spread(torch.autograd.Function):
    """Back to where the largest came from; x gives the shape."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, x: Tensor, indices: Tensor, pooling: Pooling) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.pooling = pooling
        return torch.ops.aten.max_pool2d_with_indices_backward(t, x, *pooling, indices)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gt: Tensor) -> tuple[Tensor, None, None, None]:
        return apply(_Picked, gt, *ctx.saved_tensors, ctx.pooling), None, None, None


class _Picked(torch.autograd.Function):
    """From where the largest came from: the transpose of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, x: Tensor, indices: Tensor, pooling: Pooling) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.pooling = pooling
        return t.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)

    @staticmethod
    def backward(ctx: Any, gt: Tensor) -> tuple[Tensor, None, None, None]:
        return apply(_Spread, gt, *ctx.saved_tensors, ctx.pooling), None, None, None
