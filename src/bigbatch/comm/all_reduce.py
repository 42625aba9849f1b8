"""All-reduce: every rank takes the same step with the mean gradient over all ranks.

Uses DistributedDataParallel, which overlaps communication with the backward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from bigbatch.comm.compression.compressor import Compressor
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks

_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.13
_UNSYNCED_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _renamed else "broadcast_buffers": False}
Observer = Callable[[Tensor, Tensor], None]
"""Called with a bucket of this rank's gradients and with their mean over all ranks, both flat; must not change them."""


class AllReduce(Comm):
    """Synchronous data parallelism, usable in any training loop.

    The gradients of all micro-batches of an update are accumulated, and all-reduced once, in the last backward pass. Divide each loss by
    `divisor`, and local batches may have different sizes: the step is that of one process with all samples.

    Args:
        model: The model; DistributedDataParallel broadcasts the weights of rank 0.
        ranks: The workers.
        compressor: Compresses gradients for communication.
        bucket_mb: Size of a gradient bucket in MiB; by default a twelfth of the gradients, between 1 and 25. A bucket is sent once its
            last gradient is ready, so with b buckets at most 1 - 1/b of the communication overlaps with the backward pass.
        partial: Whether a pass may leave some parameters unused (DistributedDataParallel's `find_unused_parameters`), as an adversarial
            pass does with the batch norms of clean samples.

    >>> comm = AllReduce(nn.Linear(2, 1))  # a single process: nothing to communicate
    >>> comm.divisor(128, 64)
    128.0
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks = SINGLE_PROCESS,
        *,
        compressor: Compressor | None = None,
        bucket_mb: float | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(model, ranks)
        self.compressor = compressor
        self._observers: list[Observer] = []
        if ranks.world_size > 1:
            size = bucket_mb or min(max(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20 / 12, 1.0), 25.0)
            if compressor is not None and compressor.one_bucket:
                size = 1 << 20
            settings = {"process_group": ranks.group, "bucket_cap_mb": size, "find_unused_parameters": partial, **_UNSYNCED_BUFFERS}
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True, **settings)
            if compressor is not None:
                self.forward.register_comm_hook(self, _comm_hook)

    def observe(self, observer: Observer) -> None:
        """Register an observer of every bucket before and after communication; call it before the first backward pass.

        DistributedDataParallel takes a single communication hook, which the compressor and all observers share.
        """
        if self.compressor is None and not self._observers and isinstance(self.forward, DistributedDataParallel):
            self.forward.register_comm_hook(self, _comm_hook)
        self._observers.append(observer)

    def divisor(self, global_batch: float, local_batch: float) -> float:
        """The global batch over the world size, by which DistributedDataParallel divides as well."""
        return super().divisor(global_batch, local_batch) / self.ranks.world_size

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Synchronise gradients in the last pass only: `no_sync` in the others."""
        return nullcontext() if last or not isinstance(self.forward, DistributedDataParallel) else self.forward.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """State of the compressor, such as its errors."""
        return self.compressor.state_dict() if self.compressor is not None else {}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load the state of the compressors of all ranks."""
        if self.compressor is not None:
            self.compressor.load_state_dicts(states, self.ranks.rank, self.ranks.world_size)


def _comm_hook(comm: AllReduce, bucket: GradBucket) -> Future[Tensor]:
    if comm.in_warmup_pass:
        return Compressor().comm_hook(bucket)
    local = bucket.buffer().clone() if comm._observers else None
    future = (comm.compressor or Compressor()).comm_hook(bucket)
    if local is None:
        return future

    def observe(done: Future[Tensor]) -> Tensor:
        mean = done.value()
        mean = mean[0] if isinstance(mean, list) else mean
        for observer in comm._observers:
            observer(local, mean)
        return mean

    return future.then(observe)
