"""What came of a look at the curvature of runs: numbers, rows and words, each with what they don't know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.core.clock import Clock
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.storage.json_lines import finite
from bigbatch.study.checkpoints import MATCHED, ratio
from bigbatch.study.tables import Table

TRACE_TOLERANCE = 0.02
"""Relative standard error of the trace."""
RHO = 0.05
"""Radius of SAM's sharpness, by the paper."""
SLOPE = 0.3
"""Part of a rise from which on the slope, not the curvature, is told."""


class Measure(NamedTuple):
    """One of sharpness."""

    name: str
    value: float
    unit: str
    lowest: float | None = None  # of several starts, of which `value` is the highest

    @property
    def text(self) -> str:
        """With its unit, and the range of starts where they differ."""
        text = f"{self.value:.4g} {self.unit}".rstrip()
        apart = self.lowest is not None and self.value > 1.01 * self.lowest
        return f"{text} (starts from {self.lowest:.4g})" if apart else text


@dataclass(frozen=True)
class Measured:
    """One checkpoint."""

    run: str  # folder
    name: str  # of the folder's last part, for tables
    checkpoint: str  # file
    clock: Clock
    global_batch: int
    loss: float  # mean over the samples
    score: float  # the task's, over the samples
    gradient: float  # length of the mean loss's
    eigenvalues: list[float]
    residuals: list[float]  # |Hv - lambda v| / |lambda|
    converged: list[bool]
    trace: tuple[float, float, float]  # value, and its 95 % band
    trace_converged: bool
    density: dict[str, list[float]]  # x, mean, and the ends of its 95 % band: low, high
    range: tuple[float, float]  # of the spectrum, as far as the density's nodes go
    sharpness: list[Measure]
    seconds: float

    @property
    def slope(self) -> float:
        """The part of SAM's rise that the mean gradient alone makes; near 0 at a minimum."""
        rise = next(measure.value for measure in self.sharpness if measure.name.startswith("SAM,"))
        return RHO * self.gradient / rise if rise else 0.0


class Point(NamedTuple):
    """On the line between two runs; alpha is 0 at the first and 1 at the second."""

    alpha: float
    loss: float  # training
    score: float  # validation


@dataclass(frozen=True)
class CurvatureStudy:
    """What was measured, and the words for it."""

    task: str
    metric: Metric | str
    samples: int
    parameters: int
    runs: tuple[Measured, ...]  # one, or two to compare
    path: tuple[Point, ...] = ()

    @property
    def loss_ratio(self) -> float:
        """Of the two runs' losses, 1 or more."""
        return ratio(*(run.loss for run in self.runs)) if len(self.runs) == 2 else 1.0

    @property
    def names(self) -> list[str]:
        """What tables and plots call the runs."""
        names = [run.name for run in self.runs]
        return names if len(set(names)) == len(names) else [run.run for run in self.runs]

    def sentence(self) -> str:
        """Which is sharper, and at which losses."""
        a = self.runs[0]
        if len(self.runs) == 1:
            return f"top eigenvalue {a.eigenvalues[0]:.4g} and trace {a.trace[0]:.4g} at a training loss of {a.loss:.3g}"
        b, (first, second) = self.runs[1], self.names
        words = [
            f"{what} {x:.4g} of {first} against {y:.4g} of {second}{_times(x, y)}"
            for what, x, y in (("top eigenvalue", a.eigenvalues[0], b.eigenvalues[0]), ("trace", a.trace[0], b.trace[0]))
        ]
        return f"{'; '.join(words)}; at training losses of {a.loss:.3g} and {b.loss:.3g}"

    def doubts(self) -> Iterator[str]:
        """What the numbers don't know, each in one line."""
        if self.loss_ratio > MATCHED:
            yield (
                f"the losses differ by a factor of {self.loss_ratio:.3g}: curvature goes with the loss, so what differs between these runs "
                "may be how far they came; train both with --keep-checkpoints to compare them where their losses are alike"
            )
        sloping = [f"{name} ({100 * run.slope:.0f} %)" for name, run in zip(self.names, self.runs, strict=True) if run.slope > SLOPE]
        if sloping:
            yield (
                f"no minimum: much of SAM's rise is the slope, of {' and '.join(sloping)}; sharpness, Keskar's too, then goes with the "
                "length of the gradient, and only eigenvalues tell how the loss bends"
            )
        for name, run in zip(self.names, self.runs, strict=True):
            if not all(run.converged):
                yield f"{name}: {run.converged.count(False)} eigenvalues did not reach the tolerance; see the residuals"
            if not run.trace_converged:
                yield f"{name}: the trace did not reach its tolerance of {100 * TRACE_TOLERANCE:g} %; its band is as wide as given"
        yield f"the loss is the mean over {self.samples:,} training samples: the whole set's curvature is near, not the same; try more"
        yield "eigenvalues and sharpness, but for ASAM's, change with a scaling of weights that changes no output (Dinh et al. 2017)"

    def tables(self) -> list[Table]:
        """Of the spectrum and of the sharpness; a column a run."""
        columns = ["", *self.names, *(["second / first"] * (len(self.runs) == 2))]
        runs = self.runs
        rows: list[list[str]] = [
            ["checkpoint", *(f"{r.checkpoint}, update {r.clock.updates:,}" for r in runs)],
            ["global batch", *(f"{r.global_batch:,}" for r in runs)],
            ["training loss", *(f"{r.loss:.4g}" for r in runs), *_ratio([r.loss for r in runs])],
            [f"training {self.metric}", *(metric_of(self.metric).text(r.score) for r in runs)],
            ["length of the gradient", *(f"{r.gradient:.3g}" for r in runs), *_ratio([r.gradient for r in runs])],
        ]
        for i in range(len(runs[0].eigenvalues)):
            cells = [f"{r.eigenvalues[i]:.5g} (residual {r.residuals[i]:.1e}{'' if r.converged[i] else ', not done'})" for r in runs]
            rows.append([f"eigenvalue {i + 1}", *cells, *_ratio([r.eigenvalues[i] for r in runs])])
        rows.append(["trace [95 %]", *(_band(*r.trace) for r in runs), *_ratio([r.trace[0] for r in runs])])
        rows.append(["spectrum, ends", *(f"{r.range[0]:.4g} to {r.range[1]:.4g}" for r in runs)])
        spectrum = [row + [""] * (len(columns) - len(row)) for row in rows]
        measures = [
            [s[0].name, *(each.text for each in s), *_ratio([each.value for each in s])]
            for s in zip(*(r.sharpness for r in runs), strict=True)
        ]
        numbers = set(columns[1:])
        return [Table("Spectrum of the Hessian", columns, spectrum, numbers), Table("Sharpness", columns, measures, numbers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads."""
        runs = [
            {**vars(r), "clock": r.clock._asdict(), "sharpness": [s._asdict() for s in r.sharpness], "trace": list(r.trace)}
            for r in self.runs
        ]
        words = {"sentence": self.sentence(), "doubts": list(self.doubts()), "names": self.names, "matched": self.loss_ratio <= MATCHED}
        metric = metric_of(self.metric).to_plain()
        whole = {"task": self.task, "metric": metric, "samples": self.samples, "parameters": self.parameters, **words, "runs": runs}
        tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables()]
        return _plain({**whole, "path": [p._asdict() for p in self.path], "tables": tables})


def _times(a: float, b: float) -> str:
    return f" ({b / a:.3g} times)" if a > 0 and b > 0 else ""


def _ratio(values: Sequence[float]) -> list[str]:
    """A cell for a second run over the first."""
    if len(values) < 2:
        return []
    a, b = values
    return [f"{b / a:.3g}" if a > 0 and b > 0 else ""]


def _band(value: float, low: float, high: float) -> str:
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values, null where a number is not finite."""
    plain: dict[str, Any] = finite(values)
    return plain
