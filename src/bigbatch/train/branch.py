"""A branch of a run: from one of its checkpoints on, for a while, with another batch and rate. The run itself is not touched."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset

from bigbatch.comm.ranks import process_group
from bigbatch.core.checks import Diverged, RecipeError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import Collated
from bigbatch.tasks.task import Task
from bigbatch.train.control.batch_source import BatchSource
from bigbatch.train.control.rate_source import RateSource
from bigbatch.train.loop import train
from bigbatch.train.run import Options
from bigbatch.train.setup.build import seed_everything
from bigbatch.train.trainer import set_up

ORDER = 1_000_003
"""Between the seeds of two orders of samples."""


@dataclass(frozen=True)
class Branch:
    """What a branch does.

    Attributes:
        samples: Until its end; 0 evaluates the checkpoint as it is.
        multiple: Of the recipe's batch.
        rate_factor: Of the rate that the recipe's schedule says at each of its samples.
        order: Of its samples: 0 is the run's own; each other number has one of its own.
        held_out: Samples of the validation set that its loss is over, evenly spaced; all of them if 0, or if there are no more.
        decays: Whether the rate, from the schedule's where the branch begins, falls to zero over it in a straight line.
    """

    samples: int
    multiple: int = 1
    rate_factor: float = 1.0
    order: int = 0
    held_out: int = 0
    decays: bool = False


@dataclass(frozen=True)
class BranchResult:
    """How a branch ended."""

    loss: float  # mean over held-out samples; NaN of one that diverged
    updates: int
    samples: int
    train_s: float
    diverged: bool = False


def train_branch(
    task: Task, recipe: Recipe, checkpoint: Path, branch: Branch, *, device: str | torch.device | None = None, quiet: bool = True
) -> BranchResult:
    """Run a branch and evaluate its end on validation data.

    With the multiple and the factor 1, in the run's own order of samples, it is the run itself, bit for bit.

    Args:
        task: What the run trains.
        recipe: Of the run; without a rule for the batch.
        checkpoint: Of the run.
        branch: What to do.
        device: A torch device; a GPU if there is one, else the CPU.
        quiet: Show no progress.

    Raises:
        UserError: If the checkpoint can't be read or is another recipe's, or the branch goes beyond the run's end.
        Interrupted: After Ctrl-C.
    """
    if recipe.batch.rule is not None:
        raise RecipeError(f"batch.rule = {recipe.batch.rule.kind}: a branch is a multiple of a fixed batch; branch from a run without one")
    check_positive("multiple", branch.multiple)
    check_positive("rate_factor", branch.rate_factor)
    ordered = recipe.replace({"seed": recipe.seed + ORDER * branch.order}) if branch.order else recipe
    options = Options(measure_test=False, tensorboard=False, evaluate_every=math.inf, quiet=quiet, device=device, title="branch")
    with process_group(device=device) as ranks:
        run = set_up(task, ordered, options, ranks, checkpoint=checkpoint, of_recipe=recipe)
        begin, end = run.clock, run.clock.samples + branch.samples
        if end > recipe.total_samples:
            raise RecipeError(f"{branch.samples:,} samples from {begin.samples:,} on: the run ends at {recipe.total_samples:,}")
        if 0 < branch.held_out < len(run.data.validation):  # type: ignore[arg-type]
            run.data = run.data._replace(validation=_evenly(run.data.validation, branch.held_out))
        if branch.order:
            seed_everything(ordered.seed, ranks.rank)
        own = run.control.rate

        def rate(clock: Clock) -> float:
            if branch.decays:
                return branch.rate_factor * own.factor(begin, recipe.batch.global_batch) * (end - clock.samples) / branch.samples
            return branch.rate_factor * own.factor(clock, recipe.batch.global_batch)

        run.control.batch = BatchSource(branch.multiple * recipe.batch.global_batch)
        run.control.rate, run.control.total_samples = RateSource(rate, end), end
        try:
            result = train(run)
        except Diverged as error:
            made = (error.update or begin.updates) - begin.updates
            return BranchResult(math.nan, made, branch.samples, math.nan, diverged=True)
        assert run.validation is not None
        loss = run.validation.loss
        return BranchResult(loss, result.updates - begin.updates, branch.samples, result.train_s, diverged=not math.isfinite(loss))


def _evenly(data: Any, number: int) -> Any:
    """So many samples of a data set, evenly spaced."""
    index = torch.arange(number) * len(data) // number
    if isinstance(data, TensorDataset):
        return TensorDataset(*(tensor[index] for tensor in data.tensors))
    if isinstance(data, Collated):
        return Collated(_evenly(data.dataset, number), data.collate)
    return Subset(data, index.tolist())
