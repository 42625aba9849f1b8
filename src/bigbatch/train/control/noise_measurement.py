"""Signal and noise of each update's gradient: measured as it is made, read now and then, recorded, and told to who decides by it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.noise.dual_norm_monitor import DualNormMonitor
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.noise.reader import ALL
from bigbatch.train.state.record import Record


class NoiseMeasurement:
    """A noise monitor in the loop.

    Args:
        monitor: Sees the gradient of each micro-batch and of each update.
        ranks: The workers.
        record: Gets what was measured.
        num_groups: Micro-batches that an update is cut into at least, over all workers.
        part: What the monitor sees, by the name that the record has for it.
        observers: Told of each update in turn, when it is read: the batch's source and the rate's.
    """

    def __init__(
        self,
        monitor: NoiseScaleMonitor | DualNormMonitor,
        *,
        ranks: Ranks,
        record: Record,
        num_groups: int,
        part: str = ALL,
        observers: list[Callable[[UpdateMeasurement], None]],
    ) -> None:
        self.monitor, self.num_groups = monitor, num_groups
        self._ranks, self._record, self._observers, self._part = ranks, record, observers, part
        self._pending: list[tuple[Clock, UpdateMeasurement, Tensor]] = []
        self._began = time.monotonic()

    def after_update(self, clock: Clock, num_samples: int, lr: float, sum_loss: Tensor) -> None:
        """`clock` stands after the update; `sum_loss` is of this worker's samples, on the device."""
        now = time.monotonic()
        self._pending.append((clock, UpdateMeasurement(num_samples, lr=lr, seconds=now - self._began), sum_loss))
        self._began = now

    def restart_timer(self) -> None:
        """Time that passed in other things (starting, evaluating, saving, waiting for values) is not an update's."""
        self._began = time.monotonic()

    def read(self) -> None:
        """Read what was measured since the last call. Called by every worker after the same updates."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = self._ranks.sum_(torch.stack([loss for *_, loss in pending])).tolist()
        for (clock, update, _), loss, measured in zip(pending, losses, self.monitor.flush(), strict=True):
            seen = update._replace(
                loss=loss / update.global_batch, signal=measured.signal, noise=measured.noise, noise_along=measured.noise_along
            )
            self._record.noise(clock, {self._part if name == ALL else name: scale for name, scale in measured.parts.items()})
            for observe in self._observers:
                observe(seen)
        self._record.write_out()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; `read` was called before."""
        return self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.monitor.load_state_dict(state)
