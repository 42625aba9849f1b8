"""Why did it hold, or not: the curvature of the training loss where a run ended, and beside it where another run had learnt as much.

Everything is of the mean loss over one fixed part of the training set, in evaluation mode with the statistics of batch norm that were
saved; only along the path are those computed anew at each point, since what lies between two runs has none.
"""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from bigbatch.core.checks import check_positive
from bigbatch.core.extras import needed
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.tensors.structure import call_model
from bigbatch.core.version import __version__
from bigbatch.curvature.landscape.adaptive_sharpness import adaptive_sharpness
from bigbatch.curvature.landscape.path import path
from bigbatch.curvature.landscape.sam_sharpness import sam_sharpness
from bigbatch.curvature.landscape.sharpness import keskar_sharpness
from bigbatch.curvature.products.evaluated import Loss
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.spectrum.lanczos import top_eigenvalues
from bigbatch.curvature.spectrum.spectral_density import spectral_density
from bigbatch.curvature.spectrum.trace import trace
from bigbatch.layers.precise_statistics import recompute_statistics
from bigbatch.study.checkpoints import Candidate, RunFolder, check_comparable, match, mean_of, open_run, state_of
from bigbatch.study.curvature.study import RHO, TRACE_TOLERANCE, CurvatureStudy, Measure, Measured, Point
from bigbatch.study.result_files import CURVATURE
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.data.stream_reader import seed_of_order
from bigbatch.train.display.progress import Stages
from bigbatch.train.measure.task_loss import TaskLoss
from bigbatch.train.state.record import environment

RESULT = CURVATURE
PASS = 128
"""Samples in one pass."""
EPSILONS = (1e-3, 5e-4)
"""Keskar's sizes of the box."""
SUBSPACE = 100
"""Directions of his random subspace."""
ADAPTIVE_RHO = 0.5
"""Radius of the adaptive sharpness, by the paper."""
DENSITY_STEPS, DENSITY_STARTS = 50, 3
CURVE_POINTS = 500
STAGES = ("top eigenvalues", "trace", "spectral density", "sharpness")
Progress = Callable[[int, int | None], None]


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
        device: What BIGBATCH_DEVICE says, else a GPU if there is one, else the CPU.
        quiet: Show no progress.

    Raises:
        UserError: If a folder holds no checkpoint, two runs can't be compared, or a setting is impossible.
    """
    with needed("Keskar's sharpness", extra="study"):  # the last stage
        import scipy  # noqa: F401
    for name, value in (("samples", samples), ("eigenvalues", eigenvalues), ("tolerance", tolerance), ("points", points)):
        check_positive(name, value)
    place = choose_device(device)
    folders = [open_run(folder, task=task, data=data, device=place) for folder in (run, against) if folder is not None]
    if against is not None:
        check_comparable(*folders)
    first = folders[0]
    splits = splits_of(first.task)
    num_samples = min(samples, first.recipe.num_train_samples)
    loss = _loss_over(first.task, splits.train, num_samples, seed, first.recipe.precision, place)
    size = min(num_samples, len(splits.validation))  # type: ignore[arg-type]
    held_out = _loss_over(first.task, splits.validation, size, seed, first.recipe.precision, place)

    candidates = [_candidates(folder, loss) for folder in folders]
    chosen = list(match(*candidates)) if against is not None and matched else [each[-1] for each in candidates]
    total = len(folders) * len(STAGES) + 2 * (len(folders) == 2)
    with Stages("curvature", total=total, quiet=quiet) as stages:
        measured = tuple(
            _measure(folder, candidate.path, loss, stages, eigenvalues=eigenvalues, tolerance=tolerance, seed=seed)
            for folder, candidate in zip(folders, chosen, strict=True)
        )
        line = _path(folders, chosen, loss, held_out, stages, points) if len(folders) == 2 else ()
    model, _ = first.load(chosen[0].path)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    study = CurvatureStudy(first.task.name, first.task.metric, num_samples, size, measured, line)
    facts = {
        "settings": {"eigenvalues": eigenvalues, "tolerance": tolerance, "seed": seed},
        "version": __version__,
        "environment": environment(place),
    }
    write_atomically(first.folder / RESULT, f"{json.dumps({**study.to_dict(), **facts}, indent=1)}\n".encode())
    return study


def _measure(run: RunFolder, file: Path, loss: TaskLoss, stages: Stages, *, eigenvalues: int, tolerance: float, seed: int) -> Measured:
    """Everything about one checkpoint."""
    (model, clock), began = run.load(file), time.perf_counter()
    model = loss.module(model)
    hessian = Hessian(model, loss.losses, loss.batches)

    def say(stage: str) -> Progress:
        return stages.stage(f"{stage} of {run.name}")

    top = top_eigenvalues(hessian, min(eigenvalues, hessian.size), tolerance=tolerance, seed=seed, progress=say(STAGES[0]))
    traced = trace(hessian, tolerance=TRACE_TOLERANCE, seed=seed, progress=say(STAGES[1]))
    density = spectral_density(hessian, steps=DENSITY_STEPS, starts=DENSITY_STARTS, seed=seed, progress=say(STAGES[2]))
    curve = density.curve(num_points=CURVE_POINTS)
    rises = _sharpness(model, loss.losses, loss.batches, say(STAGES[3]), seed)
    return Measured(
        run=str(run.folder),
        name=run.name,
        checkpoint=file.name,
        clock=clock,
        global_batch=run.recipe.batch.global_batch,
        loss=hessian.loss(),
        score=mean_of(loss.scores, model, loss.batches),
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


def _sharpness(model: nn.Module, losses: Loss, batches: Sequence[Any], progress: Progress, seed: int) -> list[Measure]:
    """Keskar's in both spaces and both sizes, and those of SAM and ASAM."""
    size, passes = sum(p.numel() for p in model.parameters() if p.requires_grad), itertools.count(1)

    def one_more(_done: int, _total: int | None) -> None:
        progress(next(passes), None)

    found = []
    for where, subspace in (("all directions", None), (f"{min(SUBSPACE, size)} random directions", min(SUBSPACE, size))):
        for epsilon in EPSILONS:
            box: dict[str, Any] = {"epsilon": epsilon, "subspace": subspace, "seed": seed, "progress": one_more}
            rise = keskar_sharpness(model, losses, batches, **box)
            found.append(Measure(f"Keskar, {where}, epsilon {epsilon:g}", rise.value, "%", min(rise.starts)))
    m = min(PASS, batches[0].num_samples)
    for name, sharpness, rho in (("SAM", sam_sharpness, RHO), ("ASAM", adaptive_sharpness, ADAPTIVE_RHO)):
        value = sharpness(model, losses, batches, rho=rho, m=m, progress=one_more).value
        found.append(Measure(f"{name}, rho {rho:g}, groups of {m}", value, ""))
    return found


def _path(
    folders: Sequence[RunFolder],
    chosen: Sequence[Candidate],
    loss: TaskLoss,
    held_out: TaskLoss,
    stages: Stages,
    points: int,
) -> tuple[Point, ...]:
    """Loss on training samples and score on validation samples, along the line through two checkpoints."""
    model, other = (loss.module(folder.load(each.path)[0]) for folder, each in zip(folders, chosen, strict=True))
    ends = (state_of(model), state_of(other))

    def prepare(between: nn.Module) -> None:
        recompute_statistics(between, (batch.inputs for batch in loss.batches), forward=partial(call_model, between))

    settings: dict[str, Any] = {"points": points, "prepare": prepare}
    say = stages.stage
    training = path(model, *ends, loss.losses, loss.batches, scores=loss.scores, progress=say("loss along the path"), **settings)
    settings["progress"] = say("score along the path")
    validation = path(model, *ends, held_out.losses, held_out.batches, scores=held_out.scores, **settings)
    return tuple(
        Point(float(alpha), float(loss), float(score))
        for alpha, loss, score in zip(training.alphas, training.losses, validation.scores or (), strict=True)
    )


def _loss_over(task: Task, dataset: Dataset[Any], num_samples: int, seed: int, precision: str, device: torch.device) -> TaskLoss:
    """The loss over a part of a data set that depends on nothing but its size and the seed."""
    chosen = torch.split(sample_indices(seed_of_order(dataset, seed), len(dataset), 0, num_samples), PASS)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pairs = load_micro_batches(dataset, chosen, device=device, dtype=DTYPES[precision])
        return TaskLoss(task, pairs, [len(index) for index in chosen])


def _candidates(run: RunFolder, loss: TaskLoss) -> list[Candidate]:
    """All checkpoints of a run with their losses, the last at the end."""
    return [Candidate(file, mean_of(loss.losses, loss.module(run.load(file)[0]), loss.batches)) for file in run.checkpoints]
