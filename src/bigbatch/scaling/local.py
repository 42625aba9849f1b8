r"""Local steps: the samples between two exchanges grow, and each update stays small.

Formula: with the reference's batch B, W workers, and k B samples between two exchanges,
             inner batch  b = m B over all workers, planned by the rule that `auto` takes for m times the batch
             H            = k / m updates between two exchanges, rounded
Units:   m and k are multiples of the reference's batch; H in updates. m is 4, or the largest at which auto's rule was not shown to lose if
         that is less, or 1 where no study stands behind the reference's optimizer.
Source:  studies/local. Workers average their weights and the state of their optimizers (local SGD), which its search preferred. On the
         tasks that were not searched MuLoCo's outer momentum was the better one; DiLoCo over the reference's SGD lost.
"""

import math
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.evidence import EVIDENCE

INNER_MULTIPLE = 4.0
"""Largest m: on no task that studies/optimizers measured there was the mean score of auto's rule worse than the reference's."""
STUDY = "studies/local"
REACH, MOST_WORKERS = 64.0, 4
"""Largest k, and number of workers, at which no task was shown to lose (studies/local)."""


class LocalSteps(NamedTuple):
    """How the samples between two exchanges are cut into updates.

    Attributes:
        workers: W.
        samples: Between two exchanges, over all workers: as near to what was asked for as whole updates come.
        inner_batch: b, samples of an update over all workers.
        period: H, updates between two exchanges.
        ghost_batch: Of a worker's normalisation groups; None where it need not change.
    """

    workers: int
    samples: int
    inner_batch: int
    period: int
    ghost_batch: int | None = None


def local_steps(recipe: Recipe, samples: int, workers: int) -> LocalSteps:
    """Cut the samples between two exchanges into updates.

    Args:
        recipe: The reference.
        samples: Between two exchanges, asked for.
        workers: W.

    Raises:
        UserError: If there are no workers to exchange with, or fewer samples than one update of all of them.

    >>> local_steps(Recipe.named("digits/mlp"), 64 * 32, workers=4)
    LocalSteps(workers=4, samples=2048, inner_batch=128, period=16, ghost_batch=None)
    """
    check_positive("workers", workers)
    B, total = recipe.batch.global_batch, recipe.total_samples
    if samples < workers:
        raise UserError(f"{samples} samples between exchanges of {workers} workers: fewer than one each; raise the batch to plan for")
    if samples > total:
        raise UserError(f"{samples:,} samples between exchanges: more than the run has, {total:,}; lower the batch to plan for")
    multiple = min(inner_multiple(recipe), max(samples / B, 1.0))
    period = max(1, round(samples / (multiple * B)))
    inner = max(round(samples / period), workers)
    ghost, local = recipe.batch.ghost_batch, inner // workers
    smaller = local if isinstance(ghost, int) and ghost > local else None
    return LocalSteps(workers, inner * period, inner, period, smaller)


def inner_multiple(recipe: Recipe) -> float:
    """The inner multiple m of a reference.

    >>> [inner_multiple(Recipe.named(name)) for name in ("fashion_mnist/mlp", "text/gpt")]
    [4.0, 4.0]
    """
    evidence = EVIDENCE.get(recipe.optimizer.name)
    return 1.0 if evidence is None else min(INNER_MULTIPLE, evidence.reach)


def exchanges(steps: LocalSteps, recipe: Recipe) -> int:
    """How often workers exchange in a run of the recipe's samples.

    >>> recipe = Recipe.named("digits/mlp")  # of 25,940 samples
    >>> exchanges(local_steps(recipe, 2048, workers=4), recipe)
    13
    """
    return math.ceil(recipe.total_samples / steps.samples)


def local_changes(recipe: Recipe, steps: LocalSteps) -> list[Change]:
    """What changes besides the inner updates: how the workers go together."""
    of = {field: recipe.get(f"comm.{field}") for field in ("kind", "period", "momentum")}
    several = f"{steps.samples:,} samples between exchanges, in updates of {steps.inner_batch:,}"
    changes = [
        Change("comm.kind", of["kind"], "local_sgd", "workers take steps of their own, and average their weights"),
        Change("comm.period", of["period"], steps.period, several),
        Change("comm.momentum", of["momentum"], "average", f"with the weights, as the search in {STUDY} chose"),
    ]
    if steps.ghost_batch is not None:
        why = f"a worker's share of an update, {steps.ghost_batch}: no normalisation group is cut in two"
        changes.append(Change("batch.ghost_batch", recipe.batch.ghost_batch, steps.ghost_batch, why))
        micro = recipe.batch.micro_batch
        if isinstance(micro, int) and micro % steps.ghost_batch:
            changes.append(Change("batch.micro_batch", micro, "auto", "a forward pass must hold whole groups; it never changes the update"))
    return changes
