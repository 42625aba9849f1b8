"""Norms of whole tensors, and the one rule for norms that are zero."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bigbatch.core.sharding import sharded_axes, sum_over_shards


def sq_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Squared Euclidean norm of all tensors taken as one vector, accumulated in at least float32.

    Args:
        tensors: Any shapes and floating dtypes, on one device.

    Returns:
        Scalar tensor on that device (no synchronisation); zero for no tensors.

    >>> sq_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(25.)
    """
    parts = [torch.linalg.vector_norm(t, dtype=_accumulator(t)).square() for t in tensors]
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
        where: Layout over ranks (see `bigbatch.core.sharding`) of all of them: norms are of whole tensors, by one collective.

    Returns:
        Shape (lists, tensors of each), on their device.

    >>> norms([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])
    tensor([[5.],
            [2.]])
    """
    dtype = _accumulator(lists[0][0])
    sizes = torch.stack([size for tensors in lists for size in torch._foreach_norm(tensors, 2, dtype)]).view(len(lists), -1)
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
