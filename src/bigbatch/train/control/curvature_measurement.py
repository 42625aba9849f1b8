"""Curvature of the loss, looked at every so many updates and recorded."""

from collections.abc import Mapping
from typing import Any

from bigbatch.core.clock import Clock
from bigbatch.train.measure.curvature_probe import CurvatureProbe
from bigbatch.train.state.record import Record


class CurvatureMeasurement:
    """Looks every so many updates, and after the last one, and records what it sees.

    Args:
        probe: Looks.
        record: Gets what is seen.
        every_updates: From one look to the next.
    """

    def __init__(self, probe: CurvatureProbe, record: Record, *, every_updates: int) -> None:
        self._probe, self._record, self._every = probe, record, every_updates

    @property
    def seconds(self) -> float:
        """Spent looking so far."""
        return self._probe.seconds

    def after_update(self, clock: Clock, *, last: bool) -> bool:
        """`clock` stands after the update. Returns whether it looked.

        Raises:
            Diverged: If a loss before was not finite.
        """
        if not last and clock.updates % self._every:
            return False
        self._record.flush()
        seen = self._probe.measure_if_finite()
        if seen is not None:  # else the next loss, or the check of the weights before they are saved, says so for the run
            self._record.curvature(clock, seen.facts())
        return True

    def state_dict(self) -> dict[str, Any]:
        """Of the probe."""
        return self._probe.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""
        self._probe.load_state_dict(state)
