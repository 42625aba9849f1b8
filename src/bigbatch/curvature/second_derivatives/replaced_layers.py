"""Layers whose second derivatives are slow or wrong in torch, exchanged for the same layers with fast ones while a graph is made."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bigbatch.curvature.second_derivatives.convolutions import convolution
from bigbatch.curvature.second_derivatives.piecewise_linear import max_pool2d, relu
from bigbatch.curvature.second_derivatives.weight_norm import weight_norm

_FAST: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), convolution),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
    torch._weight_norm: weight_norm,
}


class FastSecondDerivatives(TorchFunctionMode):
    """Within it, convolutions, ReLU, max-pooling and weight norm that are differentiated are bigbatch's; the rest is left to torch.

    So is all within transforms of `torch.func`, which need rules of their own.

    >>> x, w = torch.ones(1, 1, 3), torch.ones(1, 1, 2, requires_grad=True)
    >>> with FastSecondDerivatives():
    ...     type(torch.conv1d(x, w).grad_fn).__name__
    '_CBackward'
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand in for what is faster, or right."""
        fast, kwargs = _FAST.get(func), kwargs or {}
        y = None if fast is None or _transformed() else fast(*args, **kwargs)
        return func(*args, **kwargs) if y is None else y


def _transformed() -> bool:
    """Whether a transform of `torch.func` is under way: torch's own check, in `autograd.Function.apply`."""
    return torch._C._are_functorch_transforms_active()
