"""Convolutions whose second derivatives cost what they must.

A convolution y = C(x, w) is linear in each of its arguments, and so are its two gradients, gx = X(gy, w) and gw = W(gy, x). With

    <gy, C(x, w)> = <x, X(gy, w)> = <w, W(gy, x)>

the gradients of each of the three are the two others, for derivatives of any order. torch's own second derivative takes a detour: W
becomes a convolution with kernels of the size of the image, and the gradient towards data that needs none is computed, and dropped.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Settings = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups
Gradients = tuple[Tensor | None, ...]
_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class Convolutions(TorchFunctionMode):
    """Within it, convolutions that are differentiated are those of this file; others are left to torch.

    >>> x, w = torch.ones(1, 1, 3), torch.ones(1, 1, 2, requires_grad=True)
    >>> with Convolutions():
    ...     type(torch.conv1d(x, w).grad_fn).__name__
    '_CBackward'
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand in for torch's convolutions of batches, unless padded by name."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            d = _CONVOLUTIONS[func]
            x, w, bias, stride, padding, dilation, groups = _arguments(*args, **kwargs)
            if (x.requires_grad or w.requires_grad) and x.dim() == d + 2 and not isinstance(padding, str):
                y = _C.of(x, w, (_each(stride, d), _each(padding, d), _each(dilation, d), groups))
                return y if bias is None else y + bias.view(-1, *[1] * d)
        return func(*args, **kwargs)


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, groups


def _each(value: Any, d: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * d if len(values) == 1 else values


def _gradient(gy: Tensor, x: Tensor, w: Tensor, settings: Settings, mask: list[bool]) -> Any:
    """Of a convolution, towards the input, the weight, or the bias; of what it is not taken towards only the shape counts."""
    stride, padding, dilation, groups = settings
    zeros = [0] * len(stride)
    return torch.ops.aten.convolution_backward(gy, x, w, None, stride, padding, dilation, False, zeros, groups, mask)


class _Bilinear(torch.autograd.Function):
    @classmethod
    def of(cls, *inputs: Any) -> Tensor:
        """The function's value, with a graph."""
        return cls.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]


class _C(_Bilinear):
    """C(x, w), shape of y."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, settings: Settings) -> Tensor:
        stride, padding, dilation, groups = settings
        return torch.convolution(x, w, None, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        (x, w), (settings,) = ctx.saved_tensors, ctx.rest
        towards_x, towards_w, _ = ctx.needs_input_grad
        return _X.of(gy, w, settings, x.shape) if towards_x else None, _W.of(gy, x, settings, w.shape) if towards_w else None, None


class _X(_Bilinear):
    """X(gy, w), shape of x."""

    @staticmethod
    def forward(gy: Tensor, w: Tensor, settings: Settings, shape: torch.Size) -> Tensor:
        return _gradient(gy, gy.new_empty(1).expand(shape), w, settings, [True, False, False])[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (gy, w), (settings, _) = ctx.saved_tensors, ctx.rest
        towards_gy, towards_w = ctx.needs_input_grad[:2]
        return _C.of(v, w, settings) if towards_gy else None, _W.of(gy, v, settings, w.shape) if towards_w else None, None, None


class _W(_Bilinear):
    """W(gy, x), shape of w."""

    @staticmethod
    def forward(gy: Tensor, x: Tensor, settings: Settings, shape: torch.Size) -> Tensor:
        return _gradient(gy, x, gy.new_empty(1).expand(shape), settings, [False, True, False])[1]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (gy, x), (settings, _) = ctx.saved_tensors, ctx.rest
        towards_gy, towards_x = ctx.needs_input_grad[:2]
        return _C.of(x, v, settings) if towards_gy else None, _X.of(gy, v, settings, x.shape) if towards_x else None, None, None
