"""Sums whose bits depend on their terms alone, not on how many other sums are taken in the same call.

Losses and norms stay on the device and are read for many updates at once: how many, the clock decides, and a run that was resumed reads
others together. A matrix product, `values.sum(0)` and an all-reduce choose the order of their additions by the shape of the whole call,
so the same update would be rounded differently. Additions of whole tensors, one after the other, have one order only.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def add_in_order(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, from the first to the last.

    >>> add_in_order(torch.tensor([[1e16, 1.0], [1.0, 1.0], [-1e16, 1.0]], dtype=torch.float64))
    tensor([0., 3.], dtype=torch.float64)
    """
    first, *others = terms
    total = first.clone()
    for term in others:
        total += term
    return total


def sum_over_ranks_(values: Tensor, group: Any = None) -> Tensor:
    """Add up over the ranks of a process group in the order of their ranks, in place; each rank gets the same bits.

    For a few values: every rank receives those of all others.

    Args:
        values: The same shape on every rank.
        group: The ranks; all of them if left out.
    """
    own = values.contiguous()
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return values.copy_(add_in_order(everyone))
