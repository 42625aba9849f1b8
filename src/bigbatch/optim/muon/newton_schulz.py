"""Orthogonalisation by matrix products alone, and how long an orthogonalised step should be."""

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration: steep at 0, so that five steps lift small singular values; the large ones end between 0.7 and 1.2."""


def orthogonalise(
    matrices: Tensor, *, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS, eps: float = 1e-7
) -> Tensor:
    """About U V' for each matrix U S V'.

    Args:
        matrices: (..., A, B), of the type to compute in.
        steps: Iterations.
        coefficients: a, b, c.
        eps: Least norm of a matrix; a zero matrix stays zero.

    Returns:
        A new tensor of the same shape and type.

    >>> orthogonalise(torch.diag(torch.tensor([3.0, 4.0])), steps=5).diagonal()
    tensor([0.7229, 1.1192])
    """
    a, b, c = coefficients
    x = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(eps)
    stack = x.reshape(-1, *x.shape[-2:])
    one = stack.size(0) == 1  # plain matrix products are faster than batches of one on a CPU
    product, stack = (torch.addmm, stack[0]) if one else (torch.baddbmm, stack)
    for _ in range(steps):
        gram = stack @ stack.mT
        poly = product(gram, gram, gram, beta=b, alpha=c)
        stack = product(stack, poly, stack, beta=a)
    x = stack.view(x.shape)
    result: Tensor = x.mT if matrices.size(-2) > matrices.size(-1) else x
    return result


def matched_rms(rows: int, columns: int) -> float:
    """Factor of an orthogonal matrix that gives it a root mean square of 0.2, as an AdamW step has.

    >>> matched_rms(100, 25)
    2.0
    """
    return 0.2 * math.sqrt(max(rows, columns))


def original_scale(rows: int, columns: int) -> float:
    """Jordan's factor.

    >>> original_scale(100, 25)
    2.0
    """
    return math.sqrt(max(1.0, rows / columns))


SCALES = ("matched_rms", "original")


def step_scale(scale: str, rows: int, columns: int) -> float:
    """The factor of that name for an orthogonal matrix of a shape."""
    return matched_rms(rows, columns) if scale == "matched_rms" else original_scale(rows, columns)
