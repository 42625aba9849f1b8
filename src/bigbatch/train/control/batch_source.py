"""Where the batch of the next update comes from: it is fixed, or follows a schedule.

`measured_batch` and `curvature_batch` are sources that are decided on the way. The order of the samples is a function of their number
alone, so that whatever the batch does, each sample is seen once an epoch, and the optimizer's state stays as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.core.clock import Clock


class BatchDecision(NamedTuple):
    """What was decided before an update, and why."""

    before: int  # samples
    after: int
    reason: str
    scheduled: bool = False  # whether `at` gives the same for the updates to come


class BatchSource:
    """The same batch throughout.

    Args:
        global_batch: Samples.

    Attributes:
        global_batch: Samples of the next update, but for the end of the run.
    """

    def __init__(self, global_batch: int) -> None:
        self.global_batch = global_batch

    def at(self, clock: Clock) -> int:  # noqa: ARG002
        """Samples of an update that begins at `clock`, as far as is known now."""
        return self.global_batch

    def is_due(self, clock: Clock) -> bool:  # noqa: ARG002
        """Whether `decide` needs all that was measured so far; the same on every worker."""
        return False

    def decide(self, clock: Clock) -> BatchDecision | None:  # noqa: ARG002
        """Before each update: whether the batch changes, or could have; the same on every worker."""
        return None

    def adversarial_share(self, clock: Clock) -> float:  # noqa: ARG002
        """Part of the samples of the next update that is to be adversarial."""
        return 0.0

    @property
    def seconds(self) -> float:
        """Spent looking at curvature so far."""
        return 0.0

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update whose gradient was measured."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"global_batch": self.global_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""
        self.global_batch = state.get("global_batch", self.global_batch)


class ScheduledBatch(BatchSource):
    """A pure function of the clock: the batch grows where the rate would fall.

    Args:
        schedule: From the clock to the batch and the factor of the peak rate that goes with it.
        global_batch: Before the first update.
    """

    def __init__(self, schedule: Callable[[Clock], tuple[int, float]], global_batch: int) -> None:
        super().__init__(global_batch)
        self._schedule = schedule

    def at(self, clock: Clock) -> int:
        """By the schedule."""
        return self._schedule(clock)[0]

    def decide(self, clock: Clock) -> BatchDecision | None:
        """A change, whenever the schedule has one."""
        before, (self.global_batch, factor) = self.global_batch, self._schedule(clock)
        if before == self.global_batch:
            return None
        return BatchDecision(before, self.global_batch, f"scheduled; rate {factor:.4g} of its peak", scheduled=True)
