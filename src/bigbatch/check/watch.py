"""What is seen of a run: gradients, learning rates and weights at every step of an optimizer, and what was called between the steps."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bigbatch.check.arrangement import Setup
from bigbatch.check.probe import Probe
from bigbatch.core.tensors.sharding import dense

MOST_VALUES = 2**14
"""Of one tensor that are compared; of a larger one, every so many-th."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class Step(NamedTuple):
    """One step of an optimizer on one worker.

    Attributes:
        gradient: All gradients that reached the step, flat.
        weights: All weights after it, flat.
        learning_rates: One per group of parameters.
        samples: Numbers of the samples that were drawn since the step before.
        calls: How often clipping and `scheduler.step` were called since the step before.
    """

    gradient: Array
    weights: Array
    learning_rates: tuple[float, ...]
    samples: tuple[int, ...]
    calls: dict[str, int]


class Record(NamedTuple):
    """What one worker did in one run.

    Attributes:
        steps: Its steps.
        start: Its weights before the first, flat.
        drawn: Numbers of all samples that it drew, in order; of the first data set.
        calls: How often each suspect was called.
        norms: Gradient norms that clipping saw.
        num_forms: Forms of the samples; see `WatchedData.num_forms`.
        facts: "watched" where the data is, "read" where the probe was.
    """

    steps: list[Step]
    start: Array
    drawn: list[int]
    calls: dict[str, int]
    norms: list[float]
    num_forms: int
    facts: frozenset[str]


class Watch:
    """Sees one worker's run by hooks on all optimizers."""

    def __init__(self, setup: Setup, probe: Probe) -> None:
        self.setup, self.probe = setup, probe
        self.calls: Counter[str] = Counter()
        self.norms: list[float] = []
        self._steps: list[Step] = []
        self._start: Array = np.zeros(0)
        self._seen, self._calls_before = 0, Counter[str]()
        self._gradient: Array = np.zeros(0)
        self._rates: dict[int, list[float]] = {}
        self._own_rates: list[Any] = []
        self._prepared = False
        register_optimizer_step_pre_hook(self._before)
        register_optimizer_step_post_hook(self._after)

    def prepare_(self, parameters: Iterable[Tensor]) -> None:
        """Once a step, before its clipping: average and scale gradients, where these suspects are removed."""
        if self._prepared:
            return
        self._prepared = True
        for p in parameters:
            if p.grad is None:
                continue
            if "no_all_reduce" in self.setup.removed and self.setup.arrangement.workers > 1:
                distributed.all_reduce(p.grad)
                p.grad /= self.setup.arrangement.workers
            p.grad *= self.setup.factor

    @property
    def num_steps(self) -> int:
        """Steps of optimizers up to now."""
        return len(self._steps)

    def record(self) -> Record:
        """What was seen up to now."""
        data = self.probe.data_sets[0] if self.probe.data_sets else None
        facts = {"watched": data is not None, "read": self.probe.was_read}
        forms = data.num_forms() if data is not None else 1
        held = frozenset(name for name, holds in facts.items() if holds)
        return Record(self._steps, self._start, data.drawn if data else [], dict(self.calls), self.norms, forms, held)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 torch's signature
        parameters = _parameters(optimizer)
        if not self._steps:
            self._start = _flat(parameters)
        self.prepare_(parameters)
        self._gradient = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        self._own_rates = [group["lr"] for group in optimizer.param_groups]
        first = self._rates.setdefault(id(optimizer), [float(rate) for rate in self._own_rates])
        if "learning_rate" in self.setup.removed:
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 torch's signature
        rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        for group, rate in zip(optimizer.param_groups, self._own_rates, strict=True):
            group["lr"] = rate
        drawn = self.probe.data_sets[0].drawn if self.probe.data_sets else []
        calls = self.calls - self._calls_before
        step = Step(self._gradient, _flat(_parameters(optimizer)), rates, tuple(drawn[self._seen :]), dict(calls))
        self._steps.append(step)
        self._seen, self._calls_before, self._prepared = len(drawn), self.calls.copy(), False


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _flat(tensors: Iterable[Tensor]) -> Array:
    """Values of tensors as one array of float64."""
    parts = []
    for tensor in tensors:
        values = dense(tensor.detach()).flatten()
        parts.append(values[:: max(1, len(values) // MOST_VALUES)].double())
    return torch.cat(parts).numpy().copy() if parts else np.zeros(0)
