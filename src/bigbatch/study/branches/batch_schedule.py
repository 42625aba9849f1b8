"""Batch warm-up planned from branches: where in the run the batch doubles, and what that saves.

Paper:   Merrill et al. 2025, arXiv:2505.23971: the batch doubles where the critical batch, measured at checkpoints, has reached the next.
Formula: the critical batch C(s) after s samples goes from zero at the start through the checkpoints' values in straight lines, never falls,
         and stays at the last one from there on; the batch doubles at the first s with C(s) >= 2 B, up to the largest batch of a branch:
         beyond, nothing was tried. Checkpoints whose branches can't tell it are left out.
         An update of b samples is worth  b (1 + B_0/C) / (1 + b/C)  samples at the run's own batch B_0 (McCandlish et al. 2018).
Rate:    as that of the branches: with the root of the batch, unless another was asked of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bigbatch.comm.ranks import SINGLE_PROCESS
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.train.control.build import build_sources
from bigbatch.train.control.control import Control


@dataclass(frozen=True)
class BatchSchedule:
    """The recipe with its steps, and what is expected of it.

    Attributes:
        recipe: With `[batch.rule] kind = "schedule"`; the reference itself where the batch never doubles.
        reference: That was measured.
        steps: Pairs of samples and the batch from then on.
        updates: Of the run.
        worth: Samples at the reference's batch that its samples are worth, over these.
        seconds: Of the run and of the reference, on the workers asked for and without exchange; None where they are not known.
        workers: That share each update.
        notes: Doubts.
    """

    recipe: Recipe
    reference: Recipe
    steps: tuple[tuple[int, int], ...]
    updates: int
    worth: float
    seconds: tuple[float, float] | None
    workers: int
    notes: tuple[str, ...]

    def sentence(self) -> str:
        """What is saved, in words."""
        if not self.steps:
            return f"the batch stays at {self.reference.batch.global_batch:,}: the critical batch never reaches twice that"
        before = self.reference.num_updates
        saved = f"{self.updates:,} updates in place of {before:,}, {100 * (1 - self.updates / before):.0f} % fewer"
        if self.seconds is not None:
            after, own = self.seconds
            workers = f"{self.workers:,} workers" if self.workers > 1 else "1 worker"
            saved += f"; with {workers} {after:,.0f} s in place of {own:,.0f} s, without exchange"
        return f"{saved}; its samples are worth {100 * self.worth:.0f} % of as many at the run's own batch"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {"steps": [list(step) for step in self.steps], "updates": self.updates, "updates_of_reference": self.reference.num_updates}
        own |= {"worth": self.worth, "seconds": self.seconds, "workers": self.workers, "sentence": self.sentence()}
        return own | {"notes": list(self.notes), "recipe": self.recipe.to_dict(), "reference": self.reference.to_dict()}


def batch_schedule(recipe: Recipe, study: Mapping[str, Any], *, largest: int | None = None, workers: int = 1) -> BatchSchedule:
    """Plan when the batch doubles.

    Args:
        recipe: Of the run that was branched from.
        study: As `BranchStudy.to_dict` gives it (`branches.json`).
        largest: Largest batch, samples; the largest of a branch if left out.
        workers: That share each update, for the seconds.

    Raises:
        UserError: If the study is none, or of another batch; if the recipe has a rule for the batch already.
    """
    batch = recipe.batch.global_batch
    check_positive("workers", workers)
    if largest is not None:
        check_positive("largest", largest)
    if recipe.batch.rule is not None:
        raise UserError(f"batch.rule = {recipe.batch.rule.kind}: the recipe sets its batch already; leave one of the two out")
    curve, tried = _curve(study, batch)
    most = min(largest or tried, tried, recipe.num_train_samples)
    steps: dict[int, int] = {}
    notes, now = [], 2 * batch
    while now <= most and (at := _reached(curve, now)) is not None and at < recipe.total_samples:
        steps[max(1, math.ceil(at))] = now
        now *= 2
    if recipe.total_samples > 4 * curve[-1][0]:
        notes.append(f"the last checkpoint is at {curve[-1][0]:,.0f} of {recipe.total_samples:,} samples: later branches may allow more")
    planned = recipe
    if steps:
        planned = recipe.replace({"batch.rule": {"kind": "schedule", "steps": list(steps.items()), "lr": study.get("lr", "sqrt")}})
    sizes = _updates(planned)
    total = sum(sizes)
    worth, seen = 0.0, 0
    for size in sizes:
        critical = _at(curve, seen)
        worth += size * min(1.0, (critical + batch) / (critical + size))
        seen += size
    seconds = _seconds(study, recipe, sizes, workers)
    return BatchSchedule(planned, recipe, tuple(steps.items()), len(sizes), worth / total, seconds, workers, tuple(notes))


def _curve(study: Mapping[str, Any], batch: int) -> tuple[list[tuple[float, float]], int]:
    """Pairs of samples and the critical batch, from zero, never falling; and the largest batch of a branch.

    Raises:
        UserError: If the study is none, or tells no critical batch.
    """
    try:
        if study["global_batch"] != batch:
            raise UserError(f"--batch-schedule: branches of a run at a batch of {study['global_batch']:,}; the recipe has {batch:,}")
        tried = max((int(each["global_batch"]) for point in study["points"] for each in point["branches"]), default=batch)
        told = [point for point in study["points"] if _tells(point["critical_batch"])]
        values = sorted((float(point["samples"]), float(point["critical_batch"]["value"] or tried)) for point in told)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        text = f"--batch-schedule: is no study of branches ({error}); give the branches.json of `bigbatch critical --branch`"
        raise UserError(text) from None
    if not values:
        raise UserError(
            "--batch-schedule: no branch of this study tells the critical batch; take more samples or windows (--samples, --windows)"
        )
    curve, highest = [(0.0, 0.0)], 0.0
    for samples, value in values:
        highest = max(highest, value)
        curve.append((samples, highest))
    return curve, tried


def _tells(critical: Mapping[str, Any]) -> bool:
    """Whether branches set the critical batch a bound; those of one window can't, and their estimate is taken as it is."""
    return critical["lower"] is None or critical["lower"] > 0 or critical["upper"] is not None


def _at(curve: Sequence[tuple[float, float]], samples: float) -> float:
    """The critical batch after some samples."""
    for (left, low), (right, high) in pairwise(curve):
        if samples < right:
            return low + (high - low) * (samples - left) / (right - left)
    return curve[-1][1]


def _reached(curve: Sequence[tuple[float, float]], batch: float) -> float | None:
    """Samples at which the critical batch first is a batch; None: never."""
    for (left, low), (right, high) in pairwise(curve):
        if low < batch <= high:
            return left + (right - left) * (batch - low) / (high - low)
    return None


def _updates(recipe: Recipe) -> list[int]:
    """Samples of each update of a run."""
    sources = build_sources(recipe, schedule_of(recipe), SINGLE_PROCESS)
    return list(Control(*sources, recipe.total_samples).upcoming(Clock()))


def _seconds(study: Mapping[str, Any], recipe: Recipe, sizes: Sequence[int], workers: int) -> tuple[float, float] | None:
    """Of the planned run and of the reference: each update a constant, and its samples shared out."""
    costs = study.get("seconds")
    if not isinstance(costs, dict) or costs.get("per_sample") is None:
        return None
    update, sample = float(costs["per_update"]), float(costs["per_sample"])
    samples = sum(-(-size // workers) for size in sizes)
    own = _updates(recipe)
    return len(sizes) * update + samples * sample, len(own) * update + sum(-(-size // workers) for size in own) * sample
