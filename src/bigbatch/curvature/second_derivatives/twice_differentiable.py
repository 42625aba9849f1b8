"""Losses that can be differentiated twice: kernels for it, and a clear error where there is none."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from bigbatch.core.checks import UserError

Times = Callable[[list[Tensor]], list[Tensor | None]]
"""Multiplies tensors of the parameters' shapes; None stands for zeros."""
_NO_RULE = re.compile(r"double.?backward|derivative for .* not implemented|differentiate twice", re.IGNORECASE)
_ONCE = once_differentiable(lambda _: None).__code__


@contextmanager
def kernels_with_second_derivatives(model: nn.Module) -> Iterator[None]:
    """Attention by matrix products, recurrent layers without cuDNN, and no autocast, whose backward pass would round too."""
    cuda = any(p.is_cuda for p in model.parameters())
    with ExitStack() as kernels:
        kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        kernels.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        kernels.enter_context(torch.autocast("cuda" if cuda else "cpu", enabled=False))
        if cuda and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def refuse_once_differentiable(loss: Tensor) -> None:
    """Refuse a graph with a function that is marked `once_differentiable`, whose second derivative torch would silently take for zero.

    Raises:
        UserError: Naming the function.
    """
    todo: list[Any] = [loss.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        function = getattr(type(node), "_forward_cls", None)  # of a node that is a user's own
        if function is not None and getattr(function.backward, "__code__", None) is _ONCE:
            raise not_twice(f"{function.__name__} is marked once_differentiable")
        following = {n for n, _ in getattr(node, "next_functions", ()) if n is not None} - seen
        seen |= following
        todo += following


@contextmanager
def errors_told() -> Iterator[None]:
    """A clear error where torch has no second derivative.

    Raises:
        UserError: With torch's own words.
    """
    try:
        yield
    except RuntimeError as error:
        if _NO_RULE.search(str(error)):
            raise not_twice(str(error).splitlines()[0][:200]) from error
        raise


def not_twice(why: str) -> UserError:
    """The error."""
    return UserError(f"loss is not twice differentiable ({why}); use operations whose gradients have gradients")
