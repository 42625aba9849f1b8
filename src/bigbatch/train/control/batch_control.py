"""The batch of the next update and its rate: fixed, scheduled, decided by what gradients say, or AdaScale's gain at a fixed batch.

Here the rules of `bigbatch.batching` meet the loop. A change is made between two updates. The order of the samples is a function of
their number alone, so each is still seen once an epoch, and the optimizer's state stays as it is.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigbatch.batching.adascale import AdaScale, gain
from bigbatch.batching.decision import BatchRule, Bounds, Seen, decide
from bigbatch.batching.smoothed import SmoothedNoise
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.recipe import Recipe
from bigbatch.recipe import batch_rules as sections
from bigbatch.scaling.linear import linear_lr
from bigbatch.scaling.sqrt import sqrt_lr
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.train.control.learned_warmup import LearnedWarmup
from bigbatch.train.data.shares import Work, work_of
from bigbatch.train.measure.curvature_probe import CurvatureRecord
from bigbatch.train.state.record import Record

GROUPS = 4
"""Micro-batches of an update, over all workers, while noise is measured; more where they are small anyway."""


class Decision(NamedTuple):
    """What was decided before an update, and why."""

    before: int  # samples
    after: int
    reason: str
    foreseen: bool = False  # whether `ahead` told of it


class BatchControl:
    """The same batch throughout, measured if that is asked for.

    Args:
        recipe: Of the run.
        ranks: The workers.
        record: Gets what was measured.
        monitor: Measures each update's gradient, if it is to be measured.
        groups: Micro-batches that an update is then cut into at least, over all workers.
        schedule: From the clock to a factor of the peak rate; the recipe's if left out.
        warmup: Sees losses for a schedule that learns from them.
        curvature: Looks at the loss's curvature now and then.

    Attributes:
        global_batch: Samples of the next update, but for the end of the run.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        ranks: Ranks,
        record: Record,
        monitor: NoiseScaleMonitor | None = None,
        groups: int = GROUPS,
        schedule: Schedule | None = None,
        warmup: LearnedWarmup | None = None,
        curvature: CurvatureRecord | None = None,
    ) -> None:
        self._recipe, self._ranks, self._monitor, self._record, self._groups = recipe, ranks, monitor, record, groups
        self._schedule, self._total, self._warmup = schedule or schedule_of(recipe), recipe.total_samples, warmup
        self._curvature = curvature
        self._untold: list[tuple[Clock, Seen, Tensor]] = []
        self._began = time.monotonic()
        self.global_batch = recipe.batch.global_batch

    def before_update(self, clock: Clock) -> Decision | None:  # noqa: ARG002
        """Whether the batch is set anew for the next update; the same on every worker."""
        return None

    def num_samples(self, clock: Clock) -> int:
        """Samples of the next update."""
        return min(self.global_batch, self._total - clock.samples)

    def ahead(self, clock: Clock) -> Iterator[int]:
        """Samples of the updates from `clock` on, as long as nothing is decided anew."""
        samples = clock.samples
        while samples < self._total:
            yield min(self.global_batch, self._total - samples)
            samples += self.global_batch

    def factor(self, clock: Clock) -> float:
        """Of the peak rate, in the next update."""
        return self._schedule(clock)

    def adversarial_share(self, clock: Clock) -> float:  # noqa: ARG002
        """Of the samples of the next update, those that are to be adversarial."""
        return 0.0

    def position(self, clock: Clock) -> int:
        """Samples on the clock of the schedule and the budget."""
        return clock.samples

    def work(self, micro_batch: int, *, equal_num_passes: bool) -> Callable[[int], Work]:
        """How this worker's share of an update of so many samples is cut.

        Args:
            micro_batch: Most samples of a pass; fewer while noise is measured, which takes several passes.
            equal_num_passes: As in `work_of`.
        """

        @lru_cache
        def work(num_samples: int) -> Work:
            most = micro_batch if self._monitor is None else min(micro_batch, -(-num_samples // self._groups))
            ghost_batch = self._recipe.batch.ghost_batch
            return work_of(
                num_samples,
                self._ranks.rank,
                self._ranks.world_size,
                micro_batch=most,
                ghost_batch=ghost_batch,
                equal_num_passes=equal_num_passes,
            )

        return work

    def forget(self) -> None:
        """After a warm-up pass, which was not part of an update."""
        if self._monitor is not None:
            self._monitor.forget()

    def passed(self, num_samples: int, divisor: float) -> None:
        """After each backward pass."""
        if self._monitor is not None:
            self._monitor.micro_batch(num_samples, divisor=divisor)

    def measure(self) -> None:
        """After the last pass, before gradients are clipped."""
        if self._monitor is not None:
            self._monitor.update()

    def after_update(self, clock: Clock, num_samples: int, lr: float, sum_loss: Tensor) -> None:
        """`clock` stands after the update; `sum_loss` is of this worker's samples, on the device."""
        if self._warmup is not None:
            self._warmup.after_update(clock, num_samples, sum_loss)
        if self._monitor is not None:
            now = time.monotonic()
            self._untold.append((clock, Seen(num_samples, lr=lr, seconds=now - self._began), sum_loss))
            self._began = now
        if self._curvature is not None and self._curvature.after_update(clock, last=self.position(clock) >= self._total):
            self.resumed()

    @property
    def curvature_s(self) -> float:
        """Seconds spent looking at curvature so far."""
        return self._curvature.seconds if self._curvature is not None else 0.0

    def take(self) -> None:
        """Read what was measured since the last call, into the record and the rule. Called by every worker after the same updates."""
        if self._warmup is not None:
            self._warmup.take()
        if self._monitor is None or not self._untold:
            return
        untold, self._untold = self._untold, []
        losses = self._ranks.sum_(torch.stack([loss for *_, loss in untold])).tolist()
        for (clock, seen, _), loss, measured in zip(untold, losses, self._monitor.flush(), strict=True):
            told = seen._replace(
                loss=loss / seen.global_batch, signal=measured.signal, noise=measured.noise, noise_along=measured.noise_along
            )
            self._record.noise(clock, measured.parts)
            self._see(told)
        self._record.write_out()

    def news(self) -> str:
        """What the last update brought that is worth telling, in words; empty for nothing."""
        return self._warmup.news if self._warmup is not None else ""

    def resumed(self) -> None:
        """Time that passed in other things (starting, evaluating, saving, waiting for values) is not an update's."""
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; `take` was called before."""
        monitor = {"monitor": self._monitor.state_dict()} if self._monitor is not None else {}
        warmup = {"warmup": self._warmup.state_dict()} if self._warmup is not None else {}
        curvature = {"curvature": self._curvature.state_dict()} if self._curvature is not None else {}
        return {"global_batch": self.global_batch, **monitor, **warmup, **curvature}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""
        self.global_batch = state.get("global_batch", self.global_batch)
        if self._monitor is not None and "monitor" in state:
            self._monitor.load_state_dict(state["monitor"])
        if self._warmup is not None:
            self._warmup.load_state_dict(state.get("warmup", {}))
        if self._curvature is not None:
            self._curvature.load_state_dict(state.get("curvature", {}))

    def _see(self, seen: Seen) -> None:
        """What a rule wants to know of each update."""


class ScheduledBatch(BatchControl):
    """A pure function of the clock: the batch grows where the rate would fall.

    Args:
        at: From the clock to the batch and the factor of the peak rate.
        settings: As of `BatchControl`.
    """

    def __init__(self, at: Callable[[Clock], tuple[int, float]], **settings: Any) -> None:
        super().__init__(**settings)
        self._at = at

    def before_update(self, clock: Clock) -> Decision | None:
        """A change, whenever the schedule has one."""
        before, (self.global_batch, factor) = self.global_batch, self._at(clock)
        if before == self.global_batch:
            return None
        return Decision(before, self.global_batch, f"scheduled; rate {factor:.4g} of its peak", foreseen=True)

    def ahead(self, clock: Clock) -> Iterator[int]:
        """All to come: nothing is decided on the way."""
        while clock.samples < self._total:
            num_samples = min(self._at(clock)[0], self._total - clock.samples)
            yield num_samples
            clock = clock.after(num_samples)

    def factor(self, clock: Clock) -> float:
        """What the batch left over of the decay, times the warm-up."""
        return self._at(clock)[1]


class DecidedBatch(BatchControl):
    """A rule is asked every so many updates.

    Args:
        rule: Sees every update on every worker, and is asked on the first: clocks differ between workers.
        bounds: Which batches are possible.
        section: Of the recipe.
        settings: As of `BatchControl`.
    """

    def __init__(self, rule: BatchRule, bounds: Bounds, section: sections.Measured, **settings: Any) -> None:
        super().__init__(**settings)
        self._rule, self._bounds, self._section = rule, bounds, section
        self._smoothed, self._coscale = SmoothedNoise(), 1.0
        self._next = 0  # updates at which the rule is asked

    def before_update(self, clock: Clock) -> Decision | None:
        """What the rule wants, within its bounds and manners."""
        if clock.updates == 0 or clock.updates < self._next:
            self._next = self._next or self._every()
            return None
        self.take()
        self.resumed()
        before, told = self.global_batch, self._ranks.run_on_rank_0(self._decide)
        chosen, reason = json.loads(told)
        if chosen != before:
            self.global_batch = chosen
            self._coscale = self._coscaling()
        self._next = clock.updates + self._every()
        return Decision(before, chosen, reason) if reason else None

    def factor(self, clock: Clock) -> float:
        """The schedule's, times what goes with the batch."""
        return self._coscale * super().factor(clock)

    def state_dict(self) -> dict[str, Any]:
        """The rule's, and where the batch stands."""
        rule = {"rule": self._rule.state_dict(), "smoothed": self._smoothed.state_dict()}
        return {**super().state_dict(), **rule, "next": self._next, "coscale": self._coscale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        if "rule" in state:
            self._next, self._coscale = state["next"], state["coscale"]
            self._rule.load_state_dict(state["rule"])
            self._smoothed.load_state_dict(state["smoothed"])

    def _see(self, seen: Seen) -> None:
        self._rule.see(seen)
        self._smoothed.see(seen)

    def _decide(self) -> str:
        wish = self._rule.wish(self.global_batch)
        return json.dumps(decide(wish, self.global_batch, self._bounds) if wish is not None else (self.global_batch, ""))

    def _every(self) -> int:
        return self._section.every_updates or max(1, self._recipe.num_train_samples // self.global_batch)

    def _coscaling(self) -> float:
        base = self._recipe.batch.global_batch
        match self._section.lr:
            case "none":
                return 1.0
            case "linear":
                return linear_lr(1.0, self.global_batch / base)
            case "sqrt":
                return sqrt_lr(1.0, self.global_batch / base)
            case "gain":
                return gain(self._smoothed.signal, self._smoothed.noise, base, self.global_batch) if self._smoothed.num_seen else 1.0


class GainedRate(BatchControl):
    """AdaScale: the batch stays, the rate is the base batch's times a gain, and the schedule and the budget run on scale-invariant time.

    Args:
        rule: With its base batch.
        settings: As of `BatchControl`.
    """

    def __init__(self, rule: AdaScale, **settings: Any) -> None:
        super().__init__(**settings)
        self._rule, self._base = rule, rule.base_batch

    def before_update(self, clock: Clock) -> Decision | None:  # noqa: ARG002
        """Never a change of batch; reads the last update's gradient, which makes a GPU wait."""
        self.take()
        return None

    def num_samples(self, clock: Clock) -> int:  # noqa: ARG002
        """All updates are full: the run ends in scale-invariant time."""
        return self.global_batch

    def ahead(self, clock: Clock) -> Iterator[int]:  # noqa: ARG002
        """Without end."""
        while True:
            yield self.global_batch

    def position(self, clock: Clock) -> int:  # noqa: ARG002
        """Scale-invariant iterations, in samples of the base batch."""
        return min(round(self._rule.progress * self._base), self._total)

    def factor(self, clock: Clock) -> float:
        """Gain times the schedule at scale-invariant time."""
        return self._rule.gain(self.global_batch) * self._schedule(Clock(self.position(clock), clock.updates))

    def after_update(self, clock: Clock, num_samples: int, lr: float, sum_loss: Tensor) -> None:
        """Time goes on by the gain of the update."""
        self._rule.advance(self.global_batch)
        super().after_update(clock, num_samples, lr, sum_loss)

    def state_dict(self) -> dict[str, Any]:
        """The rule's."""
        return {**super().state_dict(), "rule": self._rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        if "rule" in state:
            self._rule.load_state_dict(state["rule"])

    def _see(self, seen: Seen) -> None:
        self._rule.see(seen)
