"""Convolutions of inputs that need no gradient, differentiated twice without the gradient towards those inputs.

torch's second derivative of a convolution computes that gradient always (a transposed convolution of the largest activation), and drops it:
of a product with the Hessian of a small network it is a fifth. Here the derivatives are written out, each again differentiable:

    y = conv(x, w),    gw = conv_w(x, gy)               bilinear, so that for a direction v of w
    d/dgy <gw, v> = conv(x, v)                           is all that is asked for
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Settings = tuple[Any, ...]  # stride, padding, dilation, groups, as torch's convolutions take them
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class ConvolutionsOfData(TorchFunctionMode):
    """Within it, convolutions of tensors without a gradient by weights with one are those below.

    >>> x, w = torch.ones(1, 1, 3), torch.ones(1, 1, 2, requires_grad=True)
    >>> with ConvolutionsOfData():
    ...     type(torch.conv1d(x, w).grad_fn).__name__
    '_ConvolutionBackward'
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand in for torch's convolutions, and leave all else alone."""
        if func in _CONVOLUTIONS:
            input, weight, bias, *settings = _arguments(*args, **kwargs or {})
            if weight.requires_grad and not input.requires_grad and input.dim() == weight.dim() and not isinstance(settings[1], str):
                output = _convolution(input, weight, func, tuple(settings))
                return output if bias is None else output + bias.view(-1, *[1] * (input.dim() - 2))
        return func(*args, **kwargs or {})


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, groups


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, conv: Any, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.conv, ctx.settings = conv, settings
        return conv(x, w, None, *settings)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return None, _TowardsWeight.apply(gy, x, w, ctx.conv, ctx.settings), None, None  # type: ignore[no-untyped-call]


class _TowardsWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gy: Tensor, x: Tensor, w: Tensor, conv: Any, settings: Settings) -> Tensor:
        ctx.save_for_backward(x)
        ctx.conv, ctx.settings = conv, settings
        *lists, groups = settings
        d = x.dim() - 2
        stride, padding, dilation = ([value] * d if isinstance(value, int) else list(value) for value in lists)
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(gy, x, w, None, stride, padding, dilation, False, [0] * d, groups, mask)[1]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _convolution(x, v, ctx.conv, ctx.settings), None, None, None, None


def _convolution(x: Tensor, w: Tensor, conv: Any, settings: Settings) -> Tensor:
    return _Convolution.apply(x, w, conv, settings)  # type: ignore[no-any-return, no-untyped-call]
