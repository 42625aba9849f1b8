"""Hessian-vector products in one call."""

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from bigbatch.curvature.products.evaluated import Loss
from bigbatch.curvature.products.hessian import Hessian


def hvp(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    vectors: Tensor,
    *,
    parameters: Iterable[Tensor] | None = None,
    micro_batch: int | None = None,
    group: dist.ProcessGroup | None = None,
    training: bool = False,
) -> Tensor:
    """The mean loss's Hessian times one vector (n,), or times k of them (k, n), in one pass over the data; see `Hessian`."""
    operator = Hessian(model, loss, batches, parameters=parameters, micro_batch=micro_batch, group=group, training=training, memory_bytes=0)
    return operator(vectors)
