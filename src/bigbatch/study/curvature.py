"""Why did it hold, or not: the curvature of the training loss where a run ended, and beside it where another run had learnt as much.

Everything is of the mean loss over one fixed part of the training set, in evaluation mode with the statistics of batch norm that were saved;
only along the path are those computed anew at each point, since what lies between two runs has none.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.files import write_atomically
from bigbatch.core.version import __version__
from bigbatch.curvature.adaptive_sharpness import adaptive_sharpness
from bigbatch.curvature.evaluated import Loss
from bigbatch.curvature.hessian import Hessian
from bigbatch.curvature.lanczos import top_eigenvalues
from bigbatch.curvature.path import path
from bigbatch.curvature.sam_sharpness import sam_sharpness
from bigbatch.curvature.sharpness import keskar_sharpness
from bigbatch.curvature.spectral_density import spectral_density
from bigbatch.curvature.trace import trace
from bigbatch.layers.precise_statistics import recompute_statistics
from bigbatch.study.checkpoints import MATCHED, Candidate, RunFolder, check_comparable, match, mean_of, open_run, ratio, state_of
from bigbatch.study.simulate import Table
from bigbatch.tasks.task import Task
from bigbatch.train.build import DTYPES
from bigbatch.train.feed import MicroBatch, feed
from bigbatch.train.progress import Stages
from bigbatch.train.record import environment
from bigbatch.train.sampler import sample_indices

RESULT = "curvature.json"
PASS = 128
"""Samples in one pass."""
EPSILONS = (1e-3, 5e-4)
"""Keskar's sizes of the box."""
SUBSPACE = 100
"""Directions of his random subspace."""
RHO, ADAPTIVE_RHO = 0.05, 0.5
"""Radius of SAM's sharpness, and of the adaptive one, by the papers."""
DENSITY_STEPS, DENSITY_STARTS = 50, 3
CURVE_POINTS = 500
TRACE_TOLERANCE = 0.02
"""Relative standard error."""
STAGES = ("top eigenvalues", "trace", "spectral density", "sharpness")


class Measure(NamedTuple):
    """One of sharpness."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Measured:
    """One checkpoint."""

    run: str  # folder
    name: str  # of the folder's last part, for tables
    checkpoint: str  # file
    clock: Clock
    global_batch: int
    loss: float  # mean over the samples
    score: float  # the task's, in [0, 1], over the samples
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


class Point(NamedTuple):
    """On the line between two runs; alpha is 0 at the first and 1 at the second."""

    alpha: float
    loss: float  # training
    score: float  # validation


@dataclass(frozen=True)
class CurvatureStudy:
    """What was measured, and the words for it."""

    task: str
    metric: str
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
                f"the losses differ by a factor of {self.loss_ratio:.3g}: curvature goes with the loss, so what differs between these runs may "
                "be how far they came; train both with --keep-checkpoints to compare them where their losses are alike"
            )
        for name, run in zip(self.names, self.runs, strict=True):
            if not all(run.converged):
                yield f"{name}: {run.converged.count(False)} of {len(run.converged)} eigenvalues did not reach the tolerance; see the residuals"
            if not run.trace_converged:
                yield f"{name}: the trace did not reach its tolerance of {100 * TRACE_TOLERANCE:g} %; its band is as wide as given"
        yield f"the loss is the mean over {self.samples:,} training samples: the whole set's curvature is near, not the same; try more --samples"
        yield "no measure of sharpness is the same for a network whose weights are rescaled without changing what it computes (Dinh et al. 2017)"

    def tables(self) -> list[Table]:
        """Of the spectrum and of the sharpness; a column a run."""
        columns = ["", *self.names, *(["second / first"] * (len(self.runs) == 2))]
        runs = self.runs
        rows: list[list[str]] = [
            ["checkpoint", *(f"{r.checkpoint}, update {r.clock.updates:,}" for r in runs)],
            ["global batch", *(f"{r.global_batch:,}" for r in runs)],
            ["training loss", *(f"{r.loss:.4g}" for r in runs), *_ratio([r.loss for r in runs])],
            [f"training {self.metric}", *(f"{100 * r.score:.2f} %" for r in runs)],
            ["length of the gradient", *(f"{r.gradient:.3g}" for r in runs), *_ratio([r.gradient for r in runs])],
        ]
        for i in range(len(runs[0].eigenvalues)):
            cells = [f"{r.eigenvalues[i]:.5g} (residual {r.residuals[i]:.1e}{'' if r.converged[i] else ', not done'})" for r in runs]
            rows.append([f"eigenvalue {i + 1}", *cells, *_ratio([r.eigenvalues[i] for r in runs])])
        rows.append(["trace [95 %]", *(_band(*r.trace) for r in runs), *_ratio([r.trace[0] for r in runs])])
        rows.append(["spectrum, ends", *(f"{r.range[0]:.4g} to {r.range[1]:.4g}" for r in runs)])
        spectrum = [row + [""] * (len(columns) - len(row)) for row in rows]
        measures = [
            [s[0].name, *(f"{each.value:.4g} {each.unit}".rstrip() for each in s), *_ratio([each.value for each in s])]
            for s in zip(*(r.sharpness for r in runs), strict=True)
        ]
        numbers = set(columns[1:])
        return [Table("Spectrum of the Hessian", columns, spectrum, numbers), Table("Sharpness", columns, measures, numbers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads."""
        runs = [
            {**vars(r), "clock": r.clock._asdict(), "sharpness": [s._asdict() for s in r.sharpness], "trace": list(r.trace)} for r in self.runs
        ]
        words = {"sentence": self.sentence(), "doubts": list(self.doubts()), "names": self.names, "matched": self.loss_ratio <= MATCHED}
        whole = {"task": self.task, "metric": self.metric, "samples": self.samples, "parameters": self.parameters, **words, "runs": runs}
        tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables()]
        return _plain({**whole, "path": [p._asdict() for p in self.path], "tables": tables})


def curvature(
    run: str | Path,
    *,
    against: str | Path | None = None,
    task: Task | str | None = None,
    data: str | Path | None = None,
    samples: int = 512,
    eigenvalues: int = 3,
    tolerance: float = 1e-3,
    points: int = 25,
    matched: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    quiet: bool = False,
) -> CurvatureStudy:
    """Measure the curvature of the training loss at a run's checkpoint, or at those of two runs where their losses match.

    Takes minutes. `curvature.json` is written into the folder of `run`.

    Args:
        run: Folder of a run.
        against: Folder of another run of the same task and model.
        task: A task or its name, where the run's is one of your own.
        data: Folder of the data set.
        samples: Of the training set, over which the loss is the mean; all, if it has fewer.
        eigenvalues: How many, from the largest.
        tolerance: Of their residuals.
        points: Of the path between two runs, from alpha = -1 to 2.
        matched: Whether to compare where losses are nearest, among the checkpoints that the runs kept; else at their ends.
        seed: Chooses the samples and the random vectors.
        device: A GPU if there is one, else the CPU.
        quiet: Show no progress.

    Raises:
        UserError: If a folder holds no checkpoint, two runs can't be compared, or a setting is impossible.
    """
    for name, value in (("samples", samples), ("eigenvalues", eigenvalues), ("tolerance", tolerance), ("points", points)):
        check_positive(name, value)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folders = [open_run(folder, task=task, data=data, device=place) for folder in (run, against) if folder is not None]
    if against is not None:
        check_comparable(*folders)
    first = folders[0]
    splits = first.task.splits()
    num_samples = min(samples, first.recipe.num_train_samples)
    batches = _batches(splits.train, num_samples, seed, first.recipe.precision, place)
    held_out = _batches(splits.validation, min(num_samples, len(splits.validation)), seed, first.recipe.precision, place)  # type: ignore[arg-type]

    candidates = [_candidates(folder, batches) for folder in folders]
    chosen = list(match(*candidates)) if against is not None and matched else [each[-1] for each in candidates]
    total = len(folders) * len(STAGES) + 2 * (len(folders) == 2)
    with Stages("curvature", total=total, quiet=quiet) as stages:
        measured = tuple(
            _measure(folder, candidate.path, batches, stages, eigenvalues=eigenvalues, tolerance=tolerance, seed=seed)
            for folder, candidate in zip(folders, chosen, strict=True)
        )
        line = _path(folders, chosen, batches, held_out, stages, points) if len(folders) == 2 else ()
    model, _ = first.load(chosen[0].path)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    study = CurvatureStudy(first.task.name, first.task.metric, num_samples, size, measured, line)
    facts = {"settings": {"eigenvalues": eigenvalues, "tolerance": tolerance, "seed": seed}, "version": __version__, "environment": environment()}
    write_atomically(first.folder / RESULT, f"{json.dumps({**study.to_dict(), **facts}, indent=1)}\n".encode())
    return study



def _measure(
    run: RunFolder, file: Path, batches: Sequence[MicroBatch], stages: Stages, *, eigenvalues: int, tolerance: float, seed: int
) -> Measured:
    """Everything about one checkpoint."""
    (model, clock), losses, began = run.load(file), run.task.losses, time.perf_counter()
    hessian = Hessian(model, losses, batches)

    def say(stage: str) -> Callable[[int, int | None], None]:
        return stages.stage(f"{stage} of {run.name}")

    top = top_eigenvalues(hessian, min(eigenvalues, hessian.size), tolerance=tolerance, seed=seed, progress=say(STAGES[0]))
    traced = trace(hessian, tolerance=TRACE_TOLERANCE, seed=seed, progress=say(STAGES[1]))
    density = spectral_density(hessian, steps=DENSITY_STEPS, starts=DENSITY_STARTS, seed=seed, progress=say(STAGES[2]))
    curve = density.curve(num_points=CURVE_POINTS)
    rises = _sharpness(model, losses, batches, say(STAGES[3]), seed)
    return Measured(
        run=str(run.folder),
        name=run.name,
        checkpoint=file.name,
        clock=clock,
        global_batch=run.recipe.batch.global_batch,
        loss=hessian.loss(),
        score=mean_of(run.task.scores, model, batches),
        gradient=float(hessian.gradient().norm()),
        eigenvalues=top.values.tolist(),
        residuals=top.residuals.tolist(),
        converged=top.converged.tolist(),
        trace=(float(traced.value), float(traced.low), float(traced.high)),
        trace_converged=bool(traced.converged),
        density={name: getattr(curve, name).tolist() for name in ("x", "mean", "low", "high")},
        range=(float(density.nodes.min()), float(density.nodes.max())),
        sharpness=rises,
        seconds=round(time.perf_counter() - began, 1),
    )


def _sharpness(model: nn.Module, losses: Loss, batches: Sequence[MicroBatch], progress: Callable[[int, int | None], None], seed: int) -> list[Measure]:
    """Keskar's in both spaces and both sizes, and those of SAM and ASAM."""
    size, passes = sum(p.numel() for p in model.parameters() if p.requires_grad), itertools.count(1)

    def one_more(_done: int, _total: int | None) -> None:
        progress(next(passes), None)

    found = []
    for where, subspace in (("all directions", None), (f"{min(SUBSPACE, size)} random directions", min(SUBSPACE, size))):
        for epsilon in EPSILONS:
            box: dict[str, Any] = {"epsilon": epsilon, "subspace": subspace, "seed": seed, "progress": one_more}
            found.append(Measure(f"Keskar, {where}, epsilon {epsilon:g}", keskar_sharpness(model, losses, batches, **box).value, "%"))
    balls = (("SAM", sam_sharpness, RHO), ("ASAM", adaptive_sharpness, ADAPTIVE_RHO))
    for name, sharpness, rho in balls:
        m = min(PASS, len(batches[0][1]))
        found.append(Measure(f"{name}, rho {rho:g}, groups of {m}", sharpness(model, losses, batches, rho=rho, m=m, progress=one_more).value, ""))
    return found


def _path(
    folders: Sequence[RunFolder],
    chosen: Sequence[Candidate],
    batches: Sequence[MicroBatch],
    held_out: Sequence[MicroBatch],
    stages: Stages,
    points: int,
) -> tuple[Point, ...]:
    """Loss on training samples and score on validation samples, along the line through two checkpoints."""
    model, other = (folder.load(each.path)[0] for folder, each in zip(folders, chosen, strict=True))
    task, ends = folders[0].task, (state_of(model), state_of(other))

    def prepare(between: nn.Module) -> None:
        recompute_statistics(between, batches)

    settings: dict[str, Any] = {"scores": task.scores, "points": points, "prepare": prepare}
    training = path(model, *ends, task.losses, batches, progress=stages.stage("loss along the path"), **settings)
    validation = path(model, *ends, task.losses, held_out, progress=stages.stage("score along the path"), **settings)
    return tuple(
        Point(float(alpha), float(loss), float(score))
        for alpha, loss, score in zip(training.alphas, training.losses, validation.scores or (), strict=True)
    )


def _batches(dataset: Dataset[Any], num_samples: int, seed: int, precision: str, device: torch.device) -> list[MicroBatch]:
    """A part of a data set that depends on nothing but its size and the seed."""
    chosen = sample_indices(seed, len(dataset), 0, num_samples)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(feed(dataset, torch.split(chosen, PASS), device=device, dtype=DTYPES[precision]))


def _candidates(run: RunFolder, batches: Sequence[MicroBatch]) -> list[Candidate]:
    """All checkpoints of a run with their losses, the last at the end."""
    return [Candidate(file, mean_of(run.task.losses, run.load(file)[0], batches)) for file in run.checkpoints]


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

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plain: dict[str, Any] = finite(values)
    return plain
