"""A run on trackio, in its local database or where TRACKIO_SPACE_ID says; runs of a study are a group. Files are not kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigbatch.integrations.tracker import PROJECT, Place, by_axes


class Run:
    """See `bigbatch.integrations.tracker.Tracker`."""

    def __init__(self, place: Place) -> None:
        self._place, self._run = place, None
        self.id = place.id or f"{place.group}/{place.name}" if place.group else place.id or place.name
        self._config: dict[str, Any] = {}

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Known when the run begins."""
        self._config |= values

    def log(self, values: Mapping[str, float], *, updates: int, samples: int) -> None:
        """By updates; samples are a value of their own, and a choice for the axis."""
        named = {name: value for name, value, _ in by_axes(values, updates=updates, samples=samples)}
        self._begun().log({**named, "samples": samples}, step=updates)

    def summary(self, values: Mapping[str, Any]) -> None:
        """A last row."""
        self._begun().log(dict(values))

    def artefact(self, path: Path) -> None:
        """Nothing: trackio keeps files of projects, not of runs."""

    def flush(self) -> None:
        """It sends by itself."""

    def end(self, outcome: str) -> None:
        """Waits until all is sent."""
        self._begun().log({"outcome": outcome})
        self._begun().finish()

    def _begun(self) -> Any:
        if self._run is None:
            import trackio  # in no extra

            place = self._place
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            self._run = trackio.init(project, name=self.id, group=place.group, config=self._config, resume="allow", embed=False)
        return self._run
