"""Norms of whole tensors, and the one rule for norms that are zero."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bigbatch.core.tensors.multi_tensor import flat, is_dense
from bigbatch.core.tensors.sharding import sharded_axes, sum_over_shards

PIECE = 2**18
"""Elements whose squares torch adds up on a CPU in float32 with an error of a millionth."""


def norm_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Euclidean norm of a tensor taken as one vector, to some millionths however long it is.

    `torch.linalg.vector_norm` on a CPU keeps few sums, so that small squares are lost beside a large sum: of a norm of a million elements
    1e-5 is missing, of 38 million 0.3 %. There the norm is taken of pieces first, of a copy if the tensor has gaps in memory.

    Args:
        tensor: Any shape and floating dtype.
        dtype: To accumulate in.

    Returns:
        Scalar tensor of this dtype on the tensor's device (no synchronisation).

    >>> norm_of(torch.tensor([[3.0], [4.0]]), torch.float32)
    tensor(5.)
    """
    if _loses_squares(tensor, dtype):
        vector = flat(tensor if is_dense(tensor) else tensor.contiguous())
        tensor = torch.stack(torch._foreach_norm(torch.split(vector, PIECE), 2, dtype))
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
    return norm


def each_norm(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`norm_of` each tensor of one device; by one call where that is as good."""
    if any(_loses_squares(t, dtype) for t in tensors):
        return [norm_of(t, dtype) for t in tensors]
    return list(torch._foreach_norm(tensors, 2, dtype))


def _loses_squares(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch adds up too many squares in one sum: of a long tensor, or of one whose elements do not follow each other in memory."""
    if tensor.device.type != "cpu" or dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return tensor.numel() > PIECE or not tensor.is_contiguous()


def sq_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Squared Euclidean norm of all tensors taken as one vector, accumulated in at least float32.

    Args:
        tensors: Any shapes and floating dtypes, on one device.

    Returns:
        Scalar tensor on that device (no synchronisation); zero for no tensors.

    >>> sq_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(25.)
    """
    parts = [norm_of(t, _accumulator(t)).square() for t in tensors]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all tensors taken as one vector.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    return sq_norm(tensors).sqrt()


def norms(*lists: list[Tensor], where: Any = None) -> Tensor:
    """Euclidean norm of every tensor of lists of equal length, accumulated in at least float32.

    Args:
        lists: Tensors of one device; of one type within a list, the first list's the narrowest.
        where: Layout over ranks (see `bigbatch.core.tensors.sharding`) of all of them: norms are of whole tensors, by one collective.

    Returns:
        Shape (lists, tensors of each), on their device.

    >>> norms([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])
    tensor([[5.],
            [2.]])
    """
    dtype = _accumulator(lists[0][0])
    sizes = torch.stack([size for tensors in lists for size in each_norm(tensors, dtype)]).view(len(lists), -1)
    return sum_over_shards(sizes.square(), where).sqrt() if sharded_axes(where) else sizes


def ratio_or_one(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, and give 1 wherever either is zero: the zero-norm rule of every layer-wise method.

    A weight tensor that starts at zero would never move if its ratio were 0, and an absent gradient must not divide by zero.

    >>> ratio_or_one(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 2.0, 0.0]))
    tensor([0.5000, 1.0000, 1.0000])
    """
    usable = (numerator != 0) & (denominator != 0)
    return torch.where(usable, numerator / torch.where(usable, denominator, 1), 1)


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
