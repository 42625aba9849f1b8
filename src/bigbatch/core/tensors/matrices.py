"""A parameter seen as a stack of matrices, outputs x inputs, and back.

Layouts, with n matrices of A outputs and B inputs (K = all further dimensions, of a kernel):
    rows        (n A, ...)      one below the other: linear, convolution (groups too), gates of recurrent layers, a fused q, k, v
    columns     (B, n A)        inputs first, side by side: Transformers' Conv1D;  (E, B, n A): n for each of E experts
    stack       (E, n A, B)     n for each of E experts
    transposed  (n B, A, K)     inputs first, one below the other: transposed convolutions (n groups)
"""

import math
from collections.abc import Sequence

from torch import Tensor

from bigbatch.core.checks import UserError, unknown

LAYOUTS = ("rows", "columns", "stack", "transposed")


def matrix_shape(shape: Sequence[int], matrices: int, layout: str) -> tuple[int, int, int]:
    """Number of matrices in a parameter of a shape, outputs and inputs of each.

    Args:
        shape: The parameter's.
        matrices: n of the layout.
        layout: One of `LAYOUTS`.

    Raises:
        UserError: If the layout is unknown, or does not fit the shape.

    >>> matrix_shape((4, 128, 32), 2, "stack"), matrix_shape((16, 48), 3, "columns"), matrix_shape((8, 4, 3, 3), 2, "transposed")
    ((8, 64, 32), (3, 16, 16), (2, 4, 36))
    """
    shape, n = tuple(shape), matrices
    if layout not in LAYOUTS:
        raise UserError(unknown("layout", layout, LAYOUTS))
    if len(shape) < 2 or (layout == "stack" and len(shape) != 3) or (layout == "columns" and len(shape) > 3):
        raise UserError(f"layout = {layout!r}: does not fit shape {shape}; see bigbatch.core.tensors.matrices for the layouts")
    stacked = {"columns": -1, "stack": 1}.get(layout, 0)  # dimension that holds n matrices
    if shape[stacked] % n:
        where = "columns" if layout == "columns" else "rows"
        raise UserError(f"matrices = {n}: must divide the {shape[stacked]} {where} of shape {shape}")
    if layout == "rows":
        return n, shape[0] // n, math.prod(shape[1:])
    if layout == "transposed":
        return n, shape[1], shape[0] // n * math.prod(shape[2:])
    experts = shape[0] if len(shape) == 3 else 1
    if layout == "stack":
        return experts * n, shape[1] // n, shape[2]
    return experts * n, shape[-1] // n, shape[-2]


def as_matrices(tensor: Tensor, matrices: int, layout: str) -> Tensor:
    """The tensor as matrices, shape (number, outputs, inputs); shares memory where it can."""
    n = matrices
    if layout == "columns":
        split = tensor.reshape(-1, tensor.size(-2), n, tensor.size(-1) // n)  # E, B, n, A
        return split.permute(0, 2, 3, 1).flatten(0, 1)
    if layout == "transposed":
        return tensor.reshape(n, tensor.size(0) // n, tensor.size(1), -1).transpose(1, 2).flatten(2)
    return tensor.reshape(matrix_shape(tensor.shape, n, layout))


def from_matrices(stack: Tensor, shape: Sequence[int], matrices: int, layout: str) -> Tensor:
    """The inverse of `as_matrices` for a parameter of a shape."""
    n, (_, outputs, inputs) = matrices, stack.shape
    if layout == "columns":
        return stack.reshape(-1, n, outputs, inputs).permute(0, 3, 1, 2).reshape(tuple(shape))
    if layout == "transposed":
        return stack.reshape(n, outputs, shape[0] // n, -1).transpose(1, 2).reshape(tuple(shape))
    return stack.reshape(tuple(shape))
