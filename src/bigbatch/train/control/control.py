"""What the next update is, composed: a source of the batch, a source of the rate, and measurements; each alone, any with any."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bigbatch.core.clock import Clock
from bigbatch.train.control.batch_source import BatchDecision, BatchSource
from bigbatch.train.control.curvature_measurement import CurvatureMeasurement
from bigbatch.train.control.learned_warmup import LearnedWarmup
from bigbatch.train.control.noise_measurement import NoiseMeasurement
from bigbatch.train.control.rate_source import RateSource


@dataclass
class Control:
    """Asks each part at its place in an update.

    Attributes:
        batch: Gives the batch.
        rate: Gives the rate, and keeps the clock of the budget.
        total_samples: On that clock, at which the run ends.
        noise: Measures each update's gradient.
        warmup: Sees losses for a schedule that learns from them.
        curvature: Looks at the loss's curvature every so many updates.
    """

    batch: BatchSource
    rate: RateSource
    total_samples: int
    noise: NoiseMeasurement | None = None
    warmup: LearnedWarmup | None = None
    curvature: CurvatureMeasurement | None = None

    def position(self, clock: Clock) -> int:
        """Samples on the clock of the schedule and the budget."""
        return self.rate.position(clock)

    def is_over(self, clock: Clock) -> bool:
        """Whether the budget is used up."""
        return self.position(clock) >= self.total_samples

    def before_update(self, clock: Clock) -> BatchDecision | None:
        """Decide on the batch of the update that begins at `clock`; the same on every worker.

        Raises:
            Diverged: If that takes a look at the curvature, and a loss before was not finite.
        """
        due = self.batch.is_due(clock)
        if due or self.rate.waits_for_noise:
            self.read()
        decision = self.batch.decide(clock)
        if decision is not None and decision.after != decision.before:
            self.rate.batch_changed(decision.after)
        if due:
            self.restart_timer()
        return decision

    def num_samples(self, clock: Clock) -> int:
        """Samples of the update that begins at `clock`, once it was decided on."""
        return min(self.batch.global_batch, self.rate.samples_left(clock))

    def lr_factor(self, clock: Clock) -> float:
        """Of the peak rate, in the update that begins at `clock`."""
        return self.rate.factor(clock, self.batch.global_batch)

    def upcoming(self, clock: Clock) -> Iterator[int]:
        """Samples of the updates from `clock` on, as long as nothing else is decided."""
        while (left := self.rate.samples_left(clock)) > 0:
            num_samples = min(self.batch.at(clock), left)
            yield num_samples
            clock = clock.after(num_samples)

    def after_backward(self, num_samples: int, divisor: float) -> None:
        """After each backward pass, of so many samples; losses were divided by `divisor`."""
        if self.noise is not None:
            self.noise.monitor.micro_batch(num_samples, divisor=divisor)

    def after_gradients(self) -> None:
        """After the last backward pass of an update, before gradients are clipped."""
        if self.noise is not None:
            self.noise.monitor.update()

    def forget_gradients(self) -> None:
        """UpdateBatches so far were none of an update's."""
        if self.noise is not None:
            self.noise.monitor.forget()

    def after_update(self, clock: Clock, num_samples: int, lr: float, sum_loss: Tensor) -> None:
        """`clock` stands after the update; `sum_loss` is of this worker's samples, on the device.

        Raises:
            Diverged: If it is time to look at the curvature, and a loss before was not finite.
        """
        self.rate.advance(num_samples)
        if self.warmup is not None:
            self.warmup.after_update(clock, num_samples, sum_loss)
        if self.noise is not None:
            self.noise.after_update(clock, num_samples, lr, sum_loss)
        if self.curvature is not None and self.curvature.after_update(clock, last=self.is_over(clock)):
            self.restart_timer()

    @property
    def message(self) -> str:
        """What the last update brought that is worth a line on the display; empty for nothing."""
        return self.warmup.message if self.warmup is not None else ""

    @property
    def curvature_s(self) -> float:
        """Seconds spent looking at curvature so far."""
        return self.batch.seconds + (self.curvature.seconds if self.curvature is not None else 0.0)

    def read(self) -> None:
        """Read what was measured since the last call, for the record and for decisions. Called by every worker after the same updates."""
        if self.warmup is not None:
            self.warmup.read()
        if self.noise is not None:
            self.noise.read()

    def restart_timer(self) -> None:
        """Time that passed in other things than updates is none of theirs."""
        if self.noise is not None:
            self.noise.restart_timer()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, the parts' states side by side; `read` was called before."""
        rate = {self._key_of_rate(name): value for name, value in self.rate.state_dict().items()}
        return {**self.batch.state_dict(), **rate, **{name: part.state_dict() for name, part in self._measurements()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""
        self.batch.load_state_dict(state)
        keys = {name: self._key_of_rate(name) for name in self.rate.state_dict()}
        self.rate.load_state_dict({name: state[key] for name, key in keys.items() if key in state})
        for name, part in self._measurements():
            if name in state or name != "monitor":
                part.load_state_dict(state.get(name, {}))

    def _key_of_rate(self, name: str) -> str:
        """Of a part of the rate's state, where the batch's may have one of the same name."""
        return f"rate_{name}" if name in self.batch.state_dict() else name

    def _measurements(self) -> Iterator[tuple[str, Any]]:
        for name, part in (("monitor", self.noise), ("warmup", self.warmup), ("curvature", self.curvature)):
            if part is not None:
                yield name, part
