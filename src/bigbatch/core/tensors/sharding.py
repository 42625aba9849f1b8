"""Tensors that are spread over ranks: what this rank holds, and sums that span the whole tensor."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from bigbatch.core.checks import UserError


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard of a DTensor, sharing memory, or the plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def dense(tensor: Tensor) -> Tensor:
    """All values of a tensor, such as the sparse gradient of an embedding."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks share out parameters of the model (FSDP2)."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def layout(tensor: Tensor) -> Any:
    """Mesh and placements of a DTensor; None for a plain tensor. Tensors of one layout can share a collective.

    Raises:
        UserError: If the tensor is a partial sum: its ranks have yet to agree on its value.
    """
    if not isinstance(tensor, DTensor):
        return None
    if any(p.is_partial() for p in tensor.placements):
        raise UserError(f"placements {tensor.placements}: a partial sum has no norm yet; redistribute it to Shard or Replicate first")
    return tensor.device_mesh, tensor.placements


def redistribute_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor with a parameter's layout: itself where it has it; partial sums are added up, at the cost of a collective."""
    if not isinstance(tensor, DTensor) or not isinstance(parameter, DTensor) or tensor.placements == parameter.placements:
        return tensor
    return tensor.redistribute(parameter.device_mesh, parameter.placements)


def sharded_axes(where: Any, *, dims: Sequence[int] | None = None) -> list[int]:
    """Axes of the mesh over which a layout shards, or shards one of the tensor dimensions `dims`."""
    if where is None:
        return []
    return [axis for axis, p in enumerate(where[1]) if not p.is_replicate() and (dims is None or p.dim in dims)]


def sum_over_shards(values: Tensor, where: Any, *, axes: Sequence[int] | None = None) -> Tensor:
    """Add up values that every rank took from its own shard, in place; the sum is the whole tensor's.

    Communicates only where the layout is sharded: an all-reduce for each such axis of the mesh.

    Args:
        values: Any shape; the same on every rank of an axis.
        where: From `layout`.
        axes: Of the mesh; all sharded ones by default.
    """
    return _all_reduce(values, where, axes, dist.ReduceOp.SUM)


def max_over_shards(values: Tensor, where: Any, *, axes: Sequence[int] | None = None) -> Tensor:
    """Like `sum_over_shards`, for the largest value."""
    return _all_reduce(values, where, axes, dist.ReduceOp.MAX)


def _all_reduce(values: Tensor, where: Any, axes: Sequence[int] | None, op: Any) -> Tensor:
    for axis in sharded_axes(where) if axes is None else axes:
        dist.all_reduce(values, op=op, group=where[0].get_group(axis))
    return values


def full_tensor_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor from this rank's shard of something that is laid out as `parameter` (uneven shards too)."""
    if not isinstance(parameter, DTensor):
        return tensor
    whole: Tensor = dtensor_like(tensor, parameter).full_tensor()  # type: ignore[attr-defined]
    return whole


def dtensor_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard as what it is a part of, laid out as `parameter`, sharing memory; the tensor itself for plain parameters."""
    if not isinstance(parameter, DTensor):
        return tensor
    return DTensor.from_local(
        tensor, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank holds, laid out as `parameter`."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    spread = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return spread.redistribute(placements=parameter.placements).to_local()
