"""What a tracker of experiments is asked for, and which there are; each is a file of its own."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.extras import MissingExtra, needed

LABELS = {"mlflow": "MLflow", "wandb": "Weights & Biases", "trackio": "trackio"}
"""By the names of the packages, which are those of the files here."""
PROJECT = "bigbatch"
"""Where runs go, unless the tracker's own variable (MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT, TRACKIO_PROJECT) says so."""


class Place(NamedTuple):
    """Which run of a tracker."""

    name: str  # for people
    folder: Path  # of the run
    id: str | None = None  # of a run that goes on
    parent: str | None = None  # id of the run of the study that it belongs to
    group: str | None = None  # name that the runs of a study share


class Tracker(Protocol):
    """One run. Any method may fail in any way: who calls gives up then.

    Attributes:
        id: By which the run is found again.
    """

    id: str

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Hyper-parameters: names with dots, and plain values."""

    def log(self, values: Mapping[str, float], *, updates: int, samples: int) -> None:
        """Values at a point of the run; plots exist by updates and by samples."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """What came out: numbers and words."""

    def artefact(self, path: Path) -> None:
        """Keep a copy of a file."""

    def flush(self) -> None:
        """Send what was collected."""

    def end(self, outcome: str) -> None:
        """The run has "finished", "failed" or was "stopped"."""


def by_axes(values: Mapping[str, float], *, updates: int, samples: int) -> list[tuple[str, float, int]]:
    """Each value twice, named by its axis: (name, value, place on the axis). Batches are compared by samples, and optimizers by updates.

    >>> by_axes({"train/loss": 0.5}, updates=2, samples=64)
    [('by_updates/train/loss', 0.5, 2), ('by_samples/train/loss', 0.5, 64)]
    """
    axes = (("by_updates", updates), ("by_samples", samples))
    return [(f"{axis}/{name}", value, place) for name, value in values.items() for axis, place in axes]


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not there, without importing it.

    Raises:
        UserError: If it is unknown.
        MissingExtra: If it is not installed.

    >>> check_tracker("paper")
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: unknown tracker 'paper': known: mlflow, wandb, trackio
    """
    if name not in LABELS:
        raise UserError(unknown("tracker", name, LABELS))
    if find_spec(name) is not None:
        return
    if name == "trackio":  # in no extra, because of the web server that it brings
        raise MissingExtra("a run on trackio needs trackio, which is not installed: pip install trackio", name=name)
    with needed(f"a run on {LABELS[name]}", extra="trackers"):
        raise ModuleNotFoundError(name=name)


def begin(tracker: str, place: Place) -> Tracker:
    """Begin a run, or go on with one."""
    run: Tracker = importlib.import_module(f"bigbatch.integrations.{tracker}").Run(place)
    return run
