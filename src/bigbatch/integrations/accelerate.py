"""The noise scale and the clock in a loop of Hugging Face Accelerate. docs/accelerate.md.

optimizer, scheduler = bigbatch.build_optimizer(model, recipe), ...          # build_scheduler(optimizer, recipe), prepared or not
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
monitor = AccelerateMonitor(accelerator, model, optimizer, scheduler)
for inputs, targets in loader:
with accelerator.accumulate(model):
monitor.backward(loss_of(model(inputs), targets), num_samples=len(inputs))   # instead of accelerator.backward
optimizer.step()
scheduler.step()
optimizer.zero_grad()
print(monitor.estimate())                                                    # on every process
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.integrations.samples import samples_of_all
from bigbatch.noise.estimate import NoiseEstimate
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.reader import ALL
from bigbatch.schedules.clock_lr import ClockLR

with needed("the adapter to Accelerate", extra="accelerate"):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType


class AccelerateMonitor:
    """Measures gradients before they are clipped, and watches over the scheduler. See the module's docstring.

    A prepared scheduler of torch's counts an update once per process; a `ClockLR` counts it once, prepared or not, and is told here how
    many samples an update had, so that short ones move it by what they are. Whatever the scheduler, one that counts an update more than
    once, or not at all, is refused at the pass after it.

    Args:
        accelerator: With its `gradient_accumulation_steps`.
        model: Prepared.
        optimizer: Prepared.
        scheduler: Any that is stepped after the optimizer, prepared or not; None leaves it unwatched.
        population: Samples in the training set, if batches are drawn from it without replacement.
        layers: Measure each layer too.

    Attributes:
        monitor: The `NoiseScaleMonitor` below.

    Raises:
        UserError: If gradients can't be measured: under DeepSpeed, FSDP 1, Megatron or on a TPU.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        scheduler: Any = None,
        *,
        population: float = float("inf"),
        layers: bool = False,
    ) -> None:
        kind = accelerator.distributed_type
        is_fsdp2 = kind == DistributedType.FSDP and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) == 2
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU) and not is_fsdp2:
            raise UserError(f"{kind.value}: gradients are not the parameters' own; use DistributedDataParallel or FSDP 2")
        bare = accelerator.unwrap_model(model)
        self._accelerator, self._model = accelerator, model
        self.monitor = NoiseScaleMonitor(bare, population=population, parts=layers_of(bare) if layers else None)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._scheduler = getattr(scheduler, "scheduler", scheduler)
        self._nominal = self._scheduler.global_batch if isinstance(self._scheduler, ClockLR) else 0
        self._num_samples = 0  # of this process, of the update so far
        self._first: int | None = None  # samples of the first update, of this process
        self._ticks = self._scheduled_updates()  # of the scheduler, when it was last looked at
        self._updates = 0  # of the optimizer since then
        self._optimizer.register_step_post_hook(self._after_step)

    def backward(self, loss: Tensor, *, num_samples: int, divisor: float | None = None) -> None:
        """Instead of `accelerator.backward(loss)`.

        Args:
            loss: A mean over the samples of the pass, as Accelerate wants it: it divides by the number of passes.
            num_samples: Of the pass, of this process.
            divisor: What the sum of their losses was divided by, if it is no mean; see `NoiseScaleMonitor.micro_batch`. Accelerate's
                number of passes is part of it.

        Raises:
            UserError: If the scheduler counted the last updates otherwise than once each, the first update did not have the scheduler's
                `global_batch`, or processes may run out of samples (`join_uneven_inputs`).
        """
        check_positive("num_samples", num_samples)
        self._check_join()
        self._check_scheduler()
        accelerator = self._accelerator
        accelerator.backward(loss)
        self._num_samples += num_samples
        self.monitor.micro_batch(num_samples, divisor=divisor or float(num_samples * accelerator.gradient_accumulation_steps))
        if accelerator.sync_gradients:
            scaler = accelerator.scaler
            self.monitor.update(loss_scale=scaler.get_scale() if scaler is not None else 1.0)
            if self._first is None:
                self._check_global_batch()
            if isinstance(self._scheduler, ClockLR):
                self._scheduler.global_batch = samples_of_all(self._num_samples, accelerator.device)
            self._num_samples = 0

    def estimate(self, part: str = ALL, *, last: int | None = None, confidence: float = 0.95) -> NoiseEstimate:
        """See `NoiseScaleMonitor.estimate`; every process calls it at the same time."""
        return self.monitor.estimate(part, last=last, confidence=confidence)

    def state_dict(self) -> dict[str, Any]:
        """For `accelerator.register_for_checkpointing`; every process calls it at the same time."""
        self.monitor.flush()
        return self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; the scheduler was loaded before."""
        self.monitor.load_state_dict(state)
        self._ticks, self._updates = self._scheduled_updates(), 0

    def _after_step(self, *_: Any) -> None:
        self._updates += 1

    def _scheduled_updates(self) -> int:
        if isinstance(self._scheduler, ClockLR):
            return self._scheduler.clock.updates
        return int(getattr(self._scheduler, "last_epoch", 0))

    def _check_scheduler(self) -> None:
        updates, ticks = self._updates, self._scheduled_updates() - self._ticks
        if self._scheduler is None or not hasattr(self._scheduler, "last_epoch") or not (updates or ticks):
            return
        self._updates, self._ticks = 0, self._ticks + ticks
        name, processes = type(self._scheduler).__name__, self._accelerator.num_processes
        if ticks > updates:
            cause = f"accelerator.prepare() steps it once per process ({processes})" if processes > 1 else "it is stepped at every pass"
            raise UserError(
                f"{name}: counted {ticks} updates where the optimizer made {updates}: {cause}; use bigbatch.build_scheduler, which counts "
                "each update once, or leave it unprepared and step it only if accelerator.sync_gradients"
            )
        if ticks < updates:
            raise UserError(
                f"{name}: counted {ticks} updates where the optimizer made {updates}; call scheduler.step() after each optimizer.step()"
            )

    def _check_global_batch(self) -> None:
        """Sends one number, once."""
        self._first = self._num_samples
        if not isinstance(self._scheduler, ClockLR) or self._accelerator.gradient_state.end_of_dataloader:
            return
        own = torch.tensor([self._num_samples], device=self._accelerator.device)
        together = int(self._accelerator.gather(own).sum())
        if together != self._nominal:
            processes, passes = self._accelerator.num_processes, self._accelerator.gradient_accumulation_steps
            raise UserError(
                f"global_batch = {self._nominal}: the first update had {together} samples ({processes} processes x {passes} passes); it is "
                "counted over all processes and passes: change the loader's batch, gradient_accumulation_steps, or the recipe"
            )

    def _check_join(self) -> None:
        config = getattr(self._model, "_join_config", None)
        if config is not None and config.enable:
            raise UserError(
                "join_uneven_inputs: a process that is out of samples would be waited for when the noise scale is read; leave it out, as "
                "Accelerate evens batches out by itself, or call accelerator.backward here"
            )
