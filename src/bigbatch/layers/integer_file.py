"""An integer network as a file of integers, for programs that know neither torch nor bigbatch."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.core.storage.writing import write_atomically
from bigbatch.layers.integer_network import IntegerInput
from bigbatch.layers.quantized_batch_norm import QuantizedBatchNorm

FIELDS = {
    IntegerInput: ("lo", "hi"),
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation"),
}
USUAL = {"padding_mode": "zeros", "ceil_mode": False, "start_dim": 1, "end_dim": -1}


def save_integers(network: nn.Sequential, path: str | Path) -> None:
    """Write a network as an .npz file of integers, for programs that know neither torch nor bigbatch.

    Its arrays are named "layer.Kind.field", in the order of the layers, each of the smallest integer type that holds it: IntegerInput has
    lo, hi; Conv2d weight, bias (if any), stride, padding, dilation, groups; Linear weight, bias (if any); QuantizedBatchNorm A, B, K, top,
    for clip((A X + B) >> K, 0, top); MaxPool2d kernel_size, stride, padding, dilation; Flatten has no field, so that "none" stands for it.

    Raises:
        UserError: If a layer has a setting that the file has no word for, or the file can't be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, layer in network.named_children():
        for setting, usual in USUAL.items():
            if (value := getattr(layer, setting, usual)) != usual:
                raise UserError(f"layer {name}: {setting} = {value!r}: the file has no word for it; use {usual!r}")
        fields: dict[str, Any] = {field: values.numpy() for field, values in layer.named_parameters()}
        fields |= {field: getattr(layer, field) for field in FIELDS.get(type(layer), ())}
        if isinstance(layer, QuantizedBatchNorm):
            fields |= {"A": layer.A.numpy(), "B": layer.B.numpy(), "K": layer.K.numpy(), "top": 2**layer.bits - 1}
        for field, values in (fields or {"none": 0}).items():
            arrays[f"{name}.{type(layer).__name__}.{field}"] = _smallest(np.asarray(values))
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(Path(path), content.getvalue())


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(kind for kind in kinds if np.array_equal(values.astype(kind), values)))
