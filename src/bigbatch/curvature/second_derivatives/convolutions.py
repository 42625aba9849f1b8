"""Convolutions whose second derivatives cost what they must.

A convolution y = C(x, w) + b is linear in each of x and w, and so are its gradients, gx = X(gy, w) and gw = W(gy, x). With

    <gy, C(x, w)> = <x, X(gy, w)> = <w, W(gy, x)>

the gradients of each of the three are the two others, for derivatives of any order; b goes along with C, its gradient with W. torch's own
second derivative takes a detour: W becomes a convolution with kernels of the size of the image, and the gradient towards data that needs
none is computed, and dropped.
"""

from typing import Any

import torch
from torch import Tensor

Settings = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups
Gradients = tuple[Tensor | None, ...]


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor | None:
    """As `torch.conv1d`, `conv2d` or `conv3d`, by the shape of the weight; None for what is left to torch.

    That are inputs without a dimension of samples, paddings by name, and what is not differentiated.
    """
    d = weight.dim() - 2
    if isinstance(padding, str) or input.dim() != d + 2 or not (input.requires_grad or weight.requires_grad):
        return None
    return apply(_C, input, weight, bias, (each(stride, d), each(padding, d), each(dilation, d), groups))  # type: ignore[no-any-return]


def each(value: Any, d: int) -> list[int]:
    """A setting of each of d dimensions, from one number for all of them or from so many."""
    values = [value] if isinstance(value, int) else list(value)
    return values * d if len(values) == 1 else values


def _gradients(gy: Tensor, x: Tensor, w: Tensor, settings: Settings, mask: list[bool]) -> Any:
    """Of a convolution, towards the input, the weight and the bias; of what it is not taken towards only the shape counts."""
    stride, padding, dilation, groups = settings
    biases = [gy.shape[1]] if mask[2] else None
    return torch.ops.aten.convolution_backward(gy, x, w, biases, stride, padding, dilation, False, [0] * len(stride), groups, mask)


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """The function's value, with a graph."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


class _C(torch.autograd.Function):
    """C(x, w) + b, shape of y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        stride, padding, dilation, groups = settings
        return torch.convolution(x, w, b, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        (x, w), settings = ctx.saved_tensors, ctx.settings
        towards_x, towards_w, towards_b, _ = ctx.needs_input_grad
        gx = apply(_X, gy, w, settings, x.shape) if towards_x else None
        if towards_w:
            return gx, *apply(_W, gy, x, settings, w.shape, towards_b), None
        return gx, None, gy.sum([0, *range(2, gy.dim())]) if towards_b else None, None


class _X(torch.autograd.Function):
    """X(gy, w), shape of x."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, w: Tensor, settings: Settings, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(gy, w)
        ctx.settings = settings
        return _gradients(gy, gy.new_empty(1).expand(shape), w, settings, [True, False, False])[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (gy, w), settings = ctx.saved_tensors, ctx.settings
        towards_gy, towards_w = ctx.needs_input_grad[:2]
        ggy = apply(_C, v, w, None, settings) if towards_gy else None
        return ggy, apply(_W, gy, v, settings, w.shape, False)[0] if towards_w else None, None, None


class _W(torch.autograd.Function):
    """W(gy, x), shape of w; and the gradient towards b, the sum of gy for each channel, or None."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, x: Tensor, settings: Settings, shape: torch.Size, biased: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(gy, x)
        ctx.settings = settings
        _, gw, gb = _gradients(gy, x, gy.new_empty(1).expand(shape), settings, [False, True, biased])
        return gw, gb if biased else None

    @staticmethod
    def backward(ctx: Any, v: Tensor, b: Tensor | None) -> Gradients:
        (gy, x), settings = ctx.saved_tensors, ctx.settings
        towards_gy, towards_x = ctx.needs_input_grad[:2]
        ggy = apply(_C, x, v, b, settings) if towards_gy else None
        return ggy, apply(_X, gy, v, settings, x.shape) if towards_x else None, None, None, None
