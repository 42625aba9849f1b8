"""The mean loss of an update over what is counted, such as tokens: the sum of the weights is known before the first backward pass.

A mean of the micro-batches' means would be another loss: a micro-batch of few tokens would count as much as one of many. Weights come from
targets alone, so an update's micro-batches are read ahead, their weights are added up, over all workers too, and every loss is divided by
that one sum. That waits for the device, and is one all-reduce of a number, once an update; nothing of it happens without weights.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import Elsewhere, UserError
from bigbatch.tasks.optional_parts import check_sum_of_weights, sum_of_weights
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.update.gradient_accumulation import Pass


class WeightedPasses(NamedTuple):
    """An update's passes, with the sums of their weights."""

    passes: list[Pass]
    own: float  # of this worker's samples
    total: float  # of all workers' samples


def read_weights(task: Task, batches: Iterable[MicroBatch | Pass], *, idle: int, ranks: Ranks) -> WeightedPasses:
    """Read all passes of an update and add up their weights; adversarial passes are of samples that are counted already.

    Args:
        task: With `weights`.
        batches: This worker's passes.
        idle: So many, the first, weigh nothing.
        ranks: The workers; all of them call it.

    Raises:
        UserError: On every worker, if there is not one weight a sample, one is negative or not finite, or all are zero.
    """
    passes = [batch if isinstance(batch, Pass) else Pass(*batch) for batch in batches]
    own, sums, error = 0.0, [0.0] * len(passes), None
    try:
        sums = _sums(task, passes, idle)
        own = sum(weight for piece, weight in zip(passes, sums, strict=True) if not piece.adversarial)
    except UserError as mistake:
        own, error = math.nan, mistake
    total = float(ranks.sum_(torch.tensor([own], dtype=torch.float64, device=ranks.device)))
    if error is not None:
        raise error
    try:
        check_sum_of_weights(task, total, "the update")
    except UserError as mistake:
        here = math.isnan(own) or (total == 0 and ranks.is_rank_0)
        raise mistake if here else Elsewhere(str(mistake)) from None
    return WeightedPasses([piece._replace(sum_weights=weight) for piece, weight in zip(passes, sums, strict=True)], own, total)


def _sums(task: Task, passes: list[Pass], idle: int) -> list[float]:
    """Of each pass, read from the device at once; zero for idle ones."""
    counted = [sum_of_weights(task, piece.targets, piece.samples) for piece in passes[idle:]]
    return [0.0] * idle + (torch.stack(counted).tolist() if counted else [])
