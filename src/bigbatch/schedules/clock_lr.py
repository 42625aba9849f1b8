"""The one adapter between pure schedules and torch: an LRScheduler that counts samples."""

import sys
import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.momentum_correction import corrected_momentum


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak rate (`initial_lr`, else the rate found at the first call).

    A rate that is a tensor is filled, so that a captured CUDA graph sees it; nothing waits for the device.
    """
    peaks = [_peak(group, optimizer) for group in optimizer.param_groups]
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        _set(group, peak * factor)


def _peak(group: dict[str, Any], optimizer: Optimizer) -> float | Tensor:
    """A group's peak rate, noted as `initial_lr` where the group is new."""
    if "initial_lr" not in group:
        lr = group["lr"]
        if isinstance(lr, Tensor):  # torch gives one tensor to all groups without a rate of their own: it may be scaled already
            lr = next((g["initial_lr"] for g in optimizer.param_groups if g["lr"] is lr and "initial_lr" in g), lr)
        group["initial_lr"] = lr.detach().clone() if isinstance(lr, Tensor) else lr
    peak: float | Tensor = group["initial_lr"]
    return peak


def _set(group: dict[str, Any], lr: float | Tensor) -> None:
    if not isinstance(group["lr"], Tensor):
        group["lr"] = lr
    elif isinstance(lr, Tensor):
        group["lr"].copy_(lr)
    else:
        group["lr"].fill_(lr)


class ClockLR(LRScheduler):
    """Any schedule of this package in a plain training loop; call `step()` once per optimizer update.

    Rates are a function of the clock: after `load_state_dict` they are those of the next update, whether the optimizer's state is loaded
    before or after. A group that is added later has its own rate as its peak, and follows from its first update on. Nothing waits for
    the device at a step; rates that are tensors are filled in place.

    Under Hugging Face Accelerate a prepared scheduler is stepped once per process after each update, and one that is not prepared once per
    micro-batch, so only the first call after an `optimizer.step()` counts. `global_batch` stays the samples of all processes.

    Args:
        optimizer: Its groups' rates are taken as the peak rates (`initial_lr` where a group has one).
        schedule: Function from the clock to a factor of the peak rate. Its own `state_dict`, if it has one, is saved along.
        global_batch: Samples in one update over all workers and micro-batches. Assign to `scheduler.global_batch` when it changes.
        momentum_correction: For optimizers that keep the rate inside the momentum buffer (never torch.optim.SGD): scales each
            group's `momentum` by the change of rate (see momentum_correction.py). A group keeps its own as `initial_momentum`.

    Raises:
        UserError: If `global_batch` is not positive, or a group has no momentum to correct.

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
        self._factor, self._previous_factor = 1.0, 0.0  # of the next update, and of the one before it
        self._momenta: list[float] = []
        self._num_groups = 0  # whose rates are set
        self._updated = False  # whether the optimizer has stepped since the clock last moved
        super().__init__(optimizer)
        _follow(optimizer, self)

    def step(self, epoch: int | None = None) -> None:  # noqa: ARG002 torch's signature
        """Advance the clock by one update of `global_batch` samples and set the rates for the next one."""
        if self.last_epoch >= 0:  # torch calls step() once from the constructor, before any update
            if not self._updated and _is_accelerated():
                return
            self.clock = self.clock.after(self.global_batch)
            self._previous_factor = self._factor
        self._updated = False
        self._factor = float(self.schedule(self.clock))
        self._take_in_groups()
        super().step()
        self._num_groups = len(self.optimizer.param_groups)
        self._set_momenta()

    def get_lr(self) -> list[float | Tensor]:
        """Rates for the next update, one per group."""
        return [base * self._factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: loads with `weights_only=True`. The schedule itself is the caller's to rebuild."""
        state = {"clock": tuple(self.clock), "global_batch": self.global_batch, "base_lrs": list(self.base_lrs)}
        state |= {"last_epoch": self.last_epoch, "momenta": list(self._momenta), "previous_factor": self._previous_factor}
        if hasattr(self.schedule, "state_dict"):
            state["schedule"] = self.schedule.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, and set the rates of the next update.

        Raises:
            UserError: If the state is of more groups than the optimizer has.
        """
        given, here = len(state_dict["base_lrs"]), len(self.optimizer.param_groups)
        if given > here:
            raise UserError(f"state of {given} parameter groups: the optimizer has {here}; add the missing ones before loading")
        self.clock = Clock(*state_dict["clock"])
        self.global_batch = state_dict["global_batch"]
        self.base_lrs = [float(base) for base in state_dict["base_lrs"]]
        self.last_epoch = state_dict["last_epoch"]
        self._momenta = list(state_dict.get("momenta", self._momenta))
        self._previous_factor = state_dict.get("previous_factor", 0.0)
        if "schedule" in state_dict and hasattr(self.schedule, "load_state_dict"):
            self.schedule.load_state_dict(state_dict["schedule"])
        self._updated = False
        self._apply()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After `pickle` or `copy.deepcopy`: the copy follows its own optimizer, which came along without hooks."""
        self.__dict__.update(state)
        _follow(self.optimizer, self)

    def _apply(self) -> None:
        """Set rates and momenta by the clock as it stands."""
        self._take_in_groups()
        self._factor = float(self.schedule(self.clock))
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            _set(group, lr)
        self._last_lr = [lr.clone() if isinstance(lr := group["lr"], Tensor) else lr for group in self.optimizer.param_groups]
        self._num_groups = len(self.optimizer.param_groups)
        self._set_momenta()

    def _take_in_groups(self) -> None:
        """Note the peak rate and the momentum of groups not seen before; a tensor is read once."""
        groups = self.optimizer.param_groups
        if self._num_groups == 0:  # from torch's constructor, which may have found tensors
            self.base_lrs = [float(base) for base in self.base_lrs]
        for group in groups[len(self.base_lrs) :]:
            self.base_lrs.append(float(_peak(group, self.optimizer)))
        if not self.momentum_correction:
            return
        for number, group in enumerate(groups[len(self._momenta) :], len(self._momenta)):
            if "momentum" not in group:
                kind = type(self.optimizer).__name__
                raise UserError(f"momentum_correction: group {number} of {kind} has no momentum; leave momentum_correction out")
            self._momenta.append(float(group.get("initial_momentum", group["momentum"])))

    def _set_momenta(self) -> None:
        if self.momentum_correction:
            for group, momentum in zip(self.optimizer.param_groups, self._momenta, strict=True):
                group["initial_momentum"] = momentum  # goes into the optimizer's state, where `momentum` alone would be mistaken for it
                group["momentum"] = corrected_momentum(momentum, lr=self._factor, previous_lr=self._previous_factor)


def _follow(optimizer: Optimizer, scheduler: ClockLR) -> None:
    """Have the scheduler learn of the optimizer's steps, and set the rate of new groups before their first."""
    seen_by = weakref.ref(scheduler)

    def before(optimizer: Optimizer, *_: Any) -> None:
        follower = seen_by()
        if follower is not None and follower._num_groups != len(optimizer.param_groups):
            follower._apply()

    def after(*_: Any) -> None:
        follower = seen_by()
        if follower is not None:
            follower._updated = True

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _is_accelerated() -> bool:
    """Whether an `accelerate.Accelerator` runs, whose loops call `scheduler.step()` more than once an update."""
    state = sys.modules.get("accelerate.state")
    return state is not None and bool(state.is_initialized())
