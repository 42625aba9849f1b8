"""Schedules: pure functions from the clock to a factor of the peak rate; `ClockLR`, `AutoWU` and `schedule_of` import more on use."""

import importlib
from typing import TYPE_CHECKING, Any

from bigbatch.schedules.compose import Schedule, delayed, product, sequence
from bigbatch.schedules.constant import constant
from bigbatch.schedules.constant_warmup import constant_warmup
from bigbatch.schedules.cosine import cosine
from bigbatch.schedules.gradual_warmup import gradual_warmup
from bigbatch.schedules.kept import Kept
from bigbatch.schedules.linear import linear
from bigbatch.schedules.momentum_correction import corrected_momentum
from bigbatch.schedules.polynomial import polynomial
from bigbatch.schedules.step_decay import step_decay
from bigbatch.schedules.wsd import wsd

if TYPE_CHECKING:
    from bigbatch.schedules.autowu import AutoWU
    from bigbatch.schedules.clock_lr import ClockLR, set_lr
    from bigbatch.schedules.from_recipe import schedule_of

_HOMES = {
    "AutoWU": "bigbatch.schedules.autowu",
    "ClockLR": "bigbatch.schedules.clock_lr",
    "schedule_of": "bigbatch.schedules.from_recipe",
    "set_lr": "bigbatch.schedules.clock_lr",
}
__all__ = [
    "AutoWU",
    "ClockLR",
    "Kept",
    "Schedule",
    "constant",
    "constant_warmup",
    "corrected_momentum",
    "cosine",
    "delayed",
    "gradual_warmup",
    "linear",
    "polynomial",
    "product",
    "schedule_of",
    "sequence",
    "set_lr",
    "step_decay",
    "wsd",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bigbatch.schedules' has no attribute {name!r}")
