"""A symmetric linear map of R^n that is known by its products alone: what every solver of this family takes.

A solver needs nothing else, so that a matrix, a Hessian over a data set and a Hessian over many workers are all the same to it.
"""

from typing import Protocol

import torch
from torch import Tensor

from bigbatch.core.checks import UserError


class Operator(Protocol):
    """A symmetric linear map of R^n.

    Attributes:
        size: n.
        dtype: Of vectors and products.
        device: Of vectors and products.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """One vector (n,) to its product (n,), or k of them, a row each (k, n), to theirs (k, n)."""
        ...


class Dense:
    """The operator of a matrix, for small cases and tests.

    Args:
        matrix: Shape (n, n), symmetric.

    Raises:
        UserError: If the matrix is not square, not symmetric to rounding, or not of floating-point numbers.

    >>> Dense(torch.diag(torch.tensor([1.0, 3.0])))(torch.tensor([2.0, 2.0]))
    tensor([2., 6.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel() or not matrix.is_floating_point():
            raise UserError(f"matrix of shape {tuple(matrix.shape)}, {matrix.dtype}: must be square, of floating-point numbers")
        gap = float((matrix - matrix.T).abs().max())
        if not gap <= 1000 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()):
            raise UserError(f"matrix: differs from its transpose by {gap:g}; an operator is symmetric: give (A + A.T) / 2 if that is meant")
        self.matrix = matrix.detach()

    @property
    def size(self) -> int:
        """N."""
        return len(self.matrix)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Of the matrix."""
        return self.matrix.device

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """Products with one vector (n,) or k rows (k, n), of the same shape."""
        return (as_rows(self, vectors) @ self.matrix).view(vectors.shape)


def as_rows(operator: Operator, vectors: Tensor) -> Tensor:
    """One vector (n,) or k of them (k, n) as rows (k, n), refused if they do not fit the operator.

    Raises:
        UserError: If shape, dtype or device are not the operator's, or a value is not finite.

    >>> as_rows(Dense(torch.eye(2)), torch.ones(3))
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: vectors of shape (3,): must be (2,), or (k, 2) with a row a vector
    """
    n = operator.size
    if vectors.dim() not in (1, 2) or vectors.shape[-1] != n or not vectors.numel():
        raise UserError(f"vectors of shape {tuple(vectors.shape)}: must be ({n},), or (k, {n}) with a row a vector")
    if vectors.dtype != operator.dtype or vectors.device != operator.device:
        raise UserError(
            f"vectors of {vectors.dtype} on {vectors.device}: the operator's are {operator.dtype} on {operator.device}; "
            "convert them with vectors.to(operator.device, operator.dtype)"
        )
    if not all_finite(vectors):
        raise UserError("vectors: hold values that are not finite; look at what made them")
    return vectors.detach().reshape(-1, n)


def all_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; by their sum, which is ten times faster, unless that overflows."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
