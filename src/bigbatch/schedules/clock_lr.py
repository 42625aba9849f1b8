"""The one adapter between pure schedules and torch: an LRScheduler that counts samples."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bigbatch.core.checks import check_positive
from bigbatch.core.clock import Clock
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.momentum_correction import corrected_momentum


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak rate (`initial_lr`, else the rate found at the first call)."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


class ClockLR(LRScheduler):
    """Any schedule of this package in a plain training loop; call `step()` once per optimizer update.

    Args:
        optimizer: Its groups' rates are taken as the peak rates.
        schedule: Function from the clock to a factor of the peak rate.
        global_batch: Samples in one update over all workers and micro-batches. Assign to `scheduler.global_batch` when it changes.
        momentum_correction: For optimizers that keep the rate inside the momentum buffer (never torch.optim.SGD): scales each
            group's `momentum` by the change of rate (see momentum_correction.py).

    Raises:
        UserError: If `global_batch` is not positive.

    >>> import torch
    >>> from functools import partial
    >>> from bigbatch.schedules import gradual_warmup
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    >>> scheduler = ClockLR(sgd, partial(gradual_warmup, warmup_samples=256, start_factor=0.5), global_batch=128)
    >>> rates = []
    >>> for _ in range(3):
    ...     rates.append(sgd.param_groups[0]["lr"])
    ...     sgd.step()
    ...     scheduler.step()
    >>> [round(rate, 3) for rate in rates]
    [0.4, 0.6, 0.8]
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, *, global_batch: int, momentum_correction: bool = False) -> None:
        check_positive("global_batch", global_batch)
        self.schedule = schedule
        self.global_batch = global_batch
        self.momentum_correction = momentum_correction
        self.clock = Clock()
        self._momenta = [group.get("momentum", 0.0) for group in optimizer.param_groups]
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:  # noqa: ARG002 torch's signature
        """Advance the clock by one update of `global_batch` samples and set the rates for the next one."""
        if self.last_epoch >= 0:  # torch calls step() once from the constructor, before any update
            self.clock = self.clock.after(self.global_batch)
        before = [group["lr"] for group in self.optimizer.param_groups]
        super().step()
        if self.momentum_correction and self.clock.updates > 0:
            for group, momentum, previous in zip(self.optimizer.param_groups, self._momenta, before, strict=True):
                group["momentum"] = corrected_momentum(momentum, lr=float(group["lr"]), previous_lr=float(previous))

    def get_lr(self) -> list[float | Tensor]:
        """Rates for the next update, one per group."""
        factor = self.schedule(self.clock)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: loads with `weights_only=True`. The schedule itself is the caller's to rebuild."""
        return {"clock": tuple(self.clock), "global_batch": self.global_batch, "base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the rates themselves come back with the optimizer's own state."""
        self.clock = Clock(*state_dict["clock"])
        self.global_batch = state_dict["global_batch"]
        self.base_lrs = state_dict["base_lrs"]
        self.last_epoch = state_dict["last_epoch"]
