"""What TensorBoard shows of a run: curves by updates and by samples, with a number of points that depends on the run alone.

    tensorboard/             steps are updates; hyper-parameters (the recipe) in its HPARAMS tab
    tensorboard-by-samples/  the same tags, steps are samples: runs of unlike batches lie on each other
    train/loss               mean over the samples since the point before, of at most `POINTS` a run
    train/noise_scale        ratio of the running means of noise and signal over about `1 / (1 - DECAY)` updates, in samples

Nothing here reads a clock: a run that is stopped and resumed has the same points.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bigbatch.core.clock import Clock
from bigbatch.core.tensors.average import RunningMean
from bigbatch.recipe import Recipe
from bigbatch.train.state.tensorboard import Events, events_into

POINTS = 1000
DECAY = 0.98
BY_UPDATES, BY_SAMPLES = "tensorboard", "tensorboard-by-samples"
WHOLE = "all"


class Scalars:
    """Writes scalars by updates and by samples, where TensorBoard is installed and wanted.

    Args:
        folder: Of the run.
        clock: Where it (re)starts.
        wanted: As in `events_into`.

    Raises:
        MissingExtra: If TensorBoard is wanted, and not installed.
    """

    def __init__(self, folder: Path, clock: Clock, *, wanted: bool | None) -> None:
        self._updates = events_into(folder / BY_UPDATES, clock.updates, wanted=wanted)
        self._samples = events_into(folder / BY_SAMPLES, clock.samples, wanted=wanted and self._updates is not None)
        self._total = 0  # samples of the run; not known yet
        self._loss_points = self._noise_points = -1
        self._sum_loss = 0.0
        self._num_samples = 0
        self._signal, self._noise = RunningMean(DECAY), RunningMean(DECAY)

    def describe(self, recipe: Recipe, metric_tags: Iterable[str] = ()) -> None:
        """Take the number of points from a run's length, and show its recipe as hyper-parameters."""
        self._total = recipe.total_samples
        if self._updates is not None:
            self._updates.add_hparams(recipe.to_flat_dict(), metric_tags)

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up the means where an earlier attempt left them: its lines, in order, are counted and not written again."""
        for line in lines:
            if line["kind"] == "update":
                self._count(line["samples"], line["loss"], line["global_batch"])
            elif line["kind"] == "noise":
                self._measure(line["samples"], line["signal_and_noise"])

    def update(self, clock: Clock, loss: float, num_samples: int, lr: float) -> None:
        """One update, of the mean loss over its samples."""
        mean = self._count(clock.samples, loss, num_samples)
        if mean is not None:
            self.add("train/loss", mean, clock)
            self.add("train/lr", lr, clock)

    def noise(self, clock: Clock, parts: Mapping[str, Any]) -> None:
        """Signal and noise of one update, by part of the model."""
        scale = self._measure(clock.samples, parts)
        if scale is not None:
            self.add("train/noise_scale", scale, clock)

    def add(self, name: str, value: float, clock: Clock) -> None:
        """One value at `clock`."""
        if self._updates is not None:
            self._updates.add_scalar(name, value, clock.updates)
        if self._samples is not None:
            self._samples.add_scalar(name, value, clock.samples)

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        for events in self._both:
            events.flush()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        for events in self._both:
            events.close()

    @property
    def _both(self) -> list[Events]:
        return [events for events in (self._updates, self._samples) if events is not None]

    def _point(self, samples: int) -> int:
        """The number of the last point at so many samples."""
        return samples * POINTS // self._total if self._total else samples

    def _count(self, samples: int, loss: float, num_samples: int) -> float | None:
        """The mean loss since the last point, if there is a point here."""
        self._sum_loss += loss * num_samples
        self._num_samples += num_samples
        if self._point(samples) <= self._loss_points:
            return None
        mean = self._sum_loss / max(self._num_samples, 1)
        self._loss_points, self._sum_loss, self._num_samples = self._point(samples), 0.0, 0
        return mean

    def _measure(self, samples: int, parts: Mapping[str, Any]) -> float | None:
        """The noise scale, if there is a point here and a signal."""
        signal, noise = parts.get(WHOLE) or next(iter(parts.values()), (None, None))
        if signal is not None and noise is not None and math.isfinite(signal) and math.isfinite(noise):
            self._signal, self._noise = self._signal.update(signal), self._noise.update(noise)
        if self._point(samples) <= self._noise_points:
            return None
        self._noise_points = self._point(samples)
        return self._noise.value / self._signal.value if self._signal.value > 0 else None
