"""Which server holds which parameters, and how gradients are combined.

Each server holds whole tensors, so that any optimizer updates its shard as it would update the whole model.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bigbatch.comm.parameter_server.messages import Layout
from bigbatch.core.checks import UserError


def shard_parameters(sizes: Sequence[int], num_servers: int) -> list[list[int]]:
    """Assign tensors to servers: the largest first, each to the server with the fewest elements.

    Args:
        sizes: Number of elements of each tensor.
        num_servers: Number of servers, at most the number of tensors.

    Returns:
        For each server the indices of its tensors, ascending.

    Raises:
        UserError: If a server would have no tensor.

    >>> shard_parameters([784 * 256, 256, 256 * 128, 128, 1280, 10], 2)
    [[0], [1, 2, 3, 4, 5]]
    """
    if not 1 <= num_servers <= len(sizes):
        raise UserError(f"{num_servers} servers for {len(sizes)} tensors: each server needs at least one; start fewer servers")
    shards: list[list[int]] = [[] for _ in range(num_servers)]
    loads = [0] * num_servers
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(num_servers), key=lambda server: (loads[server], len(shards[server])))
        shards[least].append(i)
        loads[least] += sizes[i]
    return [sorted(indices) for indices in shards]


@torch.no_grad()
def combine_gradients(parameters: Sequence[Tensor], layout: Layout, payloads: Iterable[Any], weights: Sequence[float]) -> None:
    """Set `p.grad` to the weighted sum of packed gradients."""
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for payload, weight in zip(payloads, weights, strict=True):
        for p, gradient in zip(parameters, layout.unpack(payload, parameters[0].device), strict=True):
            assert p.grad is not None
            p.grad.add_(gradient, alpha=weight)
