"""Where the learning rate of the next update comes from: the schedule, the schedule times what goes with the batch, or AdaScale's gain.

A rate source also keeps the clock of the schedule and the budget: samples, or AdaScale's scale-invariant time.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from bigbatch.batching.adascale import AdaScale
from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.core.clock import Clock
from bigbatch.schedules.compose import Schedule


class RateSource:
    """The schedule's rate.

    Args:
        schedule: From the clock to a factor of the peak rate.
        total_samples: Of the run.
    """

    waits_for_noise = False
    """Whether the rate of an update depends on the gradient of the one before: reading it makes a GPU wait."""

    def __init__(self, schedule: Schedule, total_samples: int) -> None:
        self._schedule, self._total = schedule, total_samples

    def factor(self, clock: Clock, global_batch: int) -> float:  # noqa: ARG002
        """Of the peak rate, in the update that begins at `clock`, of so many samples but for the end of the run."""
        return self._schedule(clock)

    def position(self, clock: Clock) -> int:
        """Samples on the clock of the schedule and the budget; the run ends at its total."""
        return clock.samples

    def samples_left(self, clock: Clock) -> int:
        """Most samples of the update that begins at `clock`."""
        return self._total - clock.samples

    def batch_changed(self, global_batch: int) -> None:
        """From the next update on, updates have so many samples."""

    def advance(self, global_batch: int) -> None:
        """An update of so many samples was made."""

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update whose gradient was measured."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""


class ScaledRate(RateSource):
    """The schedule's, times a factor that goes with the batch.

    Args:
        schedule: As in `RateSource`.
        total_samples: As in `RateSource`.
        scaling: From the batch to the factor.
    """

    def __init__(self, schedule: Schedule, total_samples: int, scaling: Callable[[int], float]) -> None:
        super().__init__(schedule, total_samples)
        self._scaling = scaling

    def factor(self, clock: Clock, global_batch: int) -> float:
        """Both together."""
        return self._scaling(global_batch) * super().factor(clock, global_batch)


class RateOfDecision(ScaledRate):
    """The schedule's, times a factor that is computed when the batch changes, and stays until it changes again."""

    _scale = 1.0

    def factor(self, clock: Clock, global_batch: int) -> float:
        """With the factor of the last change."""
        return self._scale * RateSource.factor(self, clock, global_batch)

    def batch_changed(self, global_batch: int) -> None:
        """Where the factor is a gain, it is that of the signal and noise at this moment."""
        self._scale = self._scaling(global_batch)

    def state_dict(self) -> dict[str, Any]:
        """The factor."""
        return {"coscale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._scale = state.get("coscale", self._scale)


class GainRate(RateSource):
    """AdaScale: the base batch's rate times the gain; the schedule and the budget run on scale-invariant time.

    Args:
        schedule: As in `RateSource`.
        total_samples: Of the run at the base batch.
        rule: With its base batch.
    """

    waits_for_noise = True

    def __init__(self, schedule: Schedule, total_samples: int, rule: AdaScale) -> None:
        super().__init__(schedule, total_samples)
        self._rule = rule

    def factor(self, clock: Clock, global_batch: int) -> float:
        """Gain times the schedule at scale-invariant time."""
        return self._rule.gain(global_batch) * self._schedule(Clock(self.position(clock), clock.updates))

    def position(self, clock: Clock) -> int:  # noqa: ARG002
        """Scale-invariant iterations, in samples of the base batch."""
        return min(round(self._rule.progress * self._rule.base_batch), self._total)

    def samples_left(self, clock: Clock) -> int:  # noqa: ARG002
        """No bound: all updates are full, and the run ends in scale-invariant time."""
        return sys.maxsize

    def advance(self, global_batch: int) -> None:
        """Time goes on by the gain of the update."""
        self._rule.advance(global_batch)

    def observe(self, seen: UpdateMeasurement) -> None:
        """For the means of signal and noise."""
        self._rule.observe(seen)

    def state_dict(self) -> dict[str, Any]:
        """The rule's."""
        return {"rule": self._rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if "rule" in state:
            self._rule.load_state_dict(state["rule"])
