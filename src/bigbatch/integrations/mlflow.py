"""A run on MLflow, where MLFLOW_TRACKING_URI says; a study is a parent run. Words of a summary are tags "bigbatch.NAME"."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from bigbatch.integrations.tracker import PROJECT, Place, by_axes

MOST = {"metrics": 1000, "params": 100}
"""Of one request."""
OUTCOMES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class Run:
    """See `bigbatch.integrations.tracker.Tracker`."""

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # of 7, which take minutes
        self._client, self._metrics = MlflowClient(), list[Metric]()
        if place.id is not None:
            self.id = place.id
            self._client.update_run(self.id, status="RUNNING")
            return
        tags = {"mlflow.parentRunId": place.parent} if place.parent is not None else {}
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        self.id = str(self._client.create_run(experiment, run_name=place.name, tags=tags).info.run_id)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """As a request takes so many of them."""
        parameters = [Param(name, str(value)) for name, value in values.items()]
        for first in range(0, len(parameters), MOST["params"]):
            self._client.log_batch(self.id, params=parameters[first : first + MOST["params"]])

    def log(self, values: Mapping[str, float], *, updates: int, samples: int) -> None:
        """A metric for each axis: MLflow's step is the only one that it plots by."""
        now = int(1000 * time.time())
        self._metrics += [Metric(name, value, now, step) for name, value, step in by_axes(values, updates=updates, samples=samples)]

    def summary(self, values: Mapping[str, Any]) -> None:
        """Numbers are metrics, words are tags."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._metrics.append(Metric(name, float(value), int(1000 * time.time()), 0))
            else:
                self._client.set_tag(self.id, f"bigbatch.{name}", str(value))

    def artefact(self, path: Path) -> None:
        """By its name."""
        self._client.log_artifact(self.id, str(path))

    def flush(self) -> None:
        """As many at once as a request takes."""
        metrics, self._metrics = self._metrics, []
        for first in range(0, len(metrics), MOST["metrics"]):
            self._client.log_batch(self.id, metrics=metrics[first : first + MOST["metrics"]])

    def end(self, outcome: str) -> None:
        """A stopped run may go on."""
        self.flush()
        self._client.set_terminated(self.id, OUTCOMES[outcome])
