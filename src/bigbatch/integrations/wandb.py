"""A run on Weights & Biases, as WANDB_MODE and its like say; runs of a study are a group. Its files go to the run's folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from bigbatch.integrations.tracker import PROJECT, Place, by_axes


class Run:
    """See `bigbatch.integrations.tracker.Tracker`."""

    def __init__(self, place: Place) -> None:
        folder = os.environ.get("WANDB_DIR", str(place.folder))
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.name,
            group=place.group,
            job_type="run" if place.parent is not None or place.group is None else "study",
            id=place.id,
            resume="allow",
            dir=folder,
            reinit="create_new",
            settings=settings,
        )
        self.id = str(self._run.id)
        for axis in ("updates", "samples"):
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"by_{axis}/*", step_metric=axis)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """The run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, values: Mapping[str, float], *, updates: int, samples: int) -> None:
        """All in one row."""
        named = {name: value for name, value, _ in by_axes(values, updates=updates, samples=samples)}
        self._run.log({**named, "updates": updates, "samples": samples})

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's summary."""
        self._run.summary.update(dict(values))

    def artefact(self, path: Path) -> None:
        """One artifact a file, of type "bigbatch"."""
        artifact = wandb.Artifact(f"{self.id}-{path.name}", type="bigbatch")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def flush(self) -> None:
        """It sends by itself."""

    def end(self, outcome: str) -> None:
        """Waits until all is sent."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
