"""All-reduce: every worker takes the same step along the mean gradient of all.

Rides on DistributedDataParallel, which sends what is ready while the rest of the backward pass still runs.
"""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import ALONE, Ranks

_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.13
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _renamed else "broadcast_buffers": False}


class AllReduce(Comm):
    """Synchronous data parallel, usable in any loop.

    Gradients of all passes of an update are summed and exchanged once, in the last pass. Weigh each loss by one over `divisor` and
    shares may be of unequal size: the step is that of one worker with all samples.

    Args:
        model: The same on every worker, or made so by the first's weights.
        ranks: The workers.
        bucket_mb: Megabytes of gradients that are sent together.

    >>> comm = AllReduce(nn.Linear(2, 1))  # alone: nothing to exchange
    >>> comm.divisor(128, 64)
    128.0
    """

    def __init__(self, model: nn.Module, ranks: Ranks = ALONE, *, bucket_mb: float = 25.0) -> None:
        super().__init__(model, ranks)
        if ranks.world_size > 1:
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb, **_OWN_BUFFERS)

    def divisor(self, num_samples: int, own_samples: int) -> float:
        """The update's samples, less what DistributedDataParallel divides by on its own: the number of workers."""
        return super().divisor(num_samples, own_samples) / self.ranks.world_size

    def passing(self, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients in the last pass only."""
        return nullcontext() if last or not isinstance(self.forward, DistributedDataParallel) else self.forward.no_sync()
