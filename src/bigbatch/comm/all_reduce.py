"""All-reduce: every worker takes the same step along the mean gradient of all.

Rides on DistributedDataParallel, which sends what is ready while the rest of the backward pass still runs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from bigbatch.comm.compression import Compressor
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks

_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.13
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _renamed else "broadcast_buffers": False}
Observer = Callable[[Tensor, Tensor], None]
"""Called with a bucket of this worker's gradients and the mean of all workers', both flat; must not change them."""


class AllReduce(Comm):
    """Synchronous data parallel, usable in any loop.

    Gradients of all passes of an update are summed and exchanged once, in the last pass. Weigh each loss by one over `divisor` and
    shares may be of unequal size: the step is that of one worker with all samples.

    Args:
        model: The same on every worker, or made so by the first's weights.
        ranks: The workers.
        compressor: Makes gradients smaller on the way.
        bucket_mb: Megabytes of gradients that are sent together; by default a twelfth of all, between 1 and 25. A bucket can't be sent
            before its last gradient is there, so with b of them at most 1 - 1/b of the exchange hides behind the backward pass.
        partial: Whether a pass may leave out some of the parameters, as an adversarial pass does with the batch norms of clean samples;
            each pass is then searched for what it leaves out.

    >>> comm = AllReduce(nn.Linear(2, 1))  # alone: nothing to exchange
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
            settings = {"process_group": ranks.group, "bucket_cap_mb": size, "find_unused_parameters": partial, **_OWN_BUFFERS}
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True, **settings)
            if compressor is not None:
                self.forward.register_comm_hook(self, _exchange)

    def observe(self, observer: Observer) -> None:
        """Let an observer see every bucket before and after its exchange, whatever compresses it; before the first backward pass.

        DistributedDataParallel has room for one hook only: compressor and observers share it.
        """
        if self.compressor is None and not self._observers and isinstance(self.forward, DistributedDataParallel):
            self.forward.register_comm_hook(self, _exchange)
        self._observers.append(observer)

    def divisor(self, num_samples: int, own_samples: int) -> float:
        """The update's samples, less what DistributedDataParallel divides by on its own: the number of workers."""
        return super().divisor(num_samples, own_samples) / self.ranks.world_size

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients in the last pass only."""
        return nullcontext() if last or not isinstance(self.forward, DistributedDataParallel) else self.forward.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """What the compressor remembers."""
        return self.compressor.state_dict() if self.compressor is not None else {}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """What the compressors remembered."""
        if self.compressor is not None:
            self.compressor.load_state_dicts(states, self.ranks.rank, self.ranks.world_size)


def _exchange(comm: AllReduce, bucket: GradBucket) -> Future[Tensor]:
    if comm.in_warmup_pass:
        return Compressor().exchange(bucket)
    own = bucket.buffer().clone() if comm._observers else None
    future = (comm.compressor or Compressor()).exchange(bucket)
    if own is None:
        return future

    def observe(done: Future[Tensor]) -> Tensor:
        mean = done.value()
        mean = mean[0] if isinstance(mean, list) else mean
        for observer in comm._observers:
            observer(own, mean)
        return mean

    return future.then(observe)
