"""Batches of any structure: a tensor, or tensors in mappings, tuples, lists and named tuples, nested in any way.

Values that are no tensors (None, numbers, strings) stay as they are. A model is called with a tensor as it is, with a mapping as its
keyword arguments, and with a tuple or a list as its positional arguments.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bigbatch.core.checks import UserError


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a structure, in order.

    >>> import torch
    >>> [t.item() for t in tensors_of({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
    [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(part)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with `function` applied to every tensor; a mapping that can't be built from a dict becomes a dict.

    >>> import torch
    >>> map_tensors(lambda t: t.item() + 1, {"a": torch.tensor(1), "b": (torch.tensor(2), None)})
    {'a': 2, 'b': (3, None)}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, part) for key, part in value.items()}
        if type(value) is dict:
            return mapped
        try:
            return type(value)(mapped)  # type: ignore[call-arg]
        except TypeError:
            return mapped
    if isinstance(value, tuple | list):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def num_rows(value: Any) -> int:
    """Rows of the first tensor with any: the number of samples, where nobody has counted them.

    Raises:
        UserError: If there is no such tensor.
    """
    for tensor in tensors_of(value):
        if tensor.dim():
            return len(tensor)
    raise UserError(f"a batch of {describe(value)}: holds no tensor with samples along its first axis; give the number of samples")


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that a model is called with.

    >>> arguments((1, 2)), arguments({"x": 1}), arguments(3)
    (((1, 2), {}), ((), {'x': 1}), ((3,), {}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def call_model(model: nn.Module, inputs: Any, *, name: str = "the task") -> Any:
    """`model(inputs)`, `model(**inputs)` or `model(*inputs)`, by the structure of `inputs`.

    Args:
        model: The module, or what wraps it.
        inputs: Of a batch.
        name: Of the task, for the message.

    Raises:
        UserError: If the model does not take these arguments.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = arguments(inputs)
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        if (why := _why_not_taken(model, args, kwargs)) is None:
            raise  # an error of the model itself
        raise UserError(
            f"{name}: its model does not take inputs that are {describe(inputs)} ({why}): a mapping is given as keyword arguments, a tuple "
            "or list as positional ones; name the inputs as the model's forward() does, or define Task.outputs(model, inputs)"
        ) from error


def _why_not_taken(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What is wrong with arguments for a model's forward(); None if nothing is."""
    while (
        inner := getattr(model, "_orig_mod", None) or (getattr(model, "module", None) if hasattr(model, "reducer") else None)
    ) is not None:
        model = inner
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def describe(value: Any) -> str:
    """A structure in words, for messages.

    >>> import torch
    >>> describe({"ids": torch.zeros(2, 3)}), describe((1,)), describe(torch.zeros(2))
    ("a dict of 'ids'", 'a tuple of 1', 'a tensor of shape (2,)')
    """
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(repr(key) for key in value) or 'nothing'}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
