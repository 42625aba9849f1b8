"""Loss and score over a data set: every sample once, sums divided by counts."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import UserError
from bigbatch.core.metric import metric_of
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import check_sum_of_weights, has_weights, outputs_of, sum_of_weights
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import autocast
from bigbatch.train.update.gradient_accumulation import check_per_sample

EVALUATION_BATCH = 500


class Evaluation(NamedTuple):
    """Means over a data set: over its samples, or over what the task's weights count, such as tokens."""

    loss: float
    score: float  # mean of the task's scores
    num_samples: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset[Any],
    *,
    recipe: Recipe,
    ranks: Ranks = SINGLE_PROCESS,
    equal_num_passes: bool = False,
    name: str = "the data set",
) -> Evaluation:
    """Evaluate in evaluation mode; the model's mode is restored.

    Workers take turns at batches that are the same for any number of them, and the sums of the batches are added up in one order: the
    result is the same to the last bit.

    Args:
        model: Called by this worker for its batches.
        task: Losses and scores.
        dataset: The same on every worker.
        recipe: For its precision.
        ranks: The workers, and this one's device.
        equal_num_passes: Whether all ranks must make the same number of passes; a rank without a batch in the last turn repeats its first
            one and does not count it.
        name: Of the data set, for the warning where its mean score is not finite.

    Returns:
        Mean loss and score over all samples of `dataset`; with weights, sums over all samples divided by the sum of their weights.

    Raises:
        UserError: If the task does not return one loss and one score per sample, its weights can't be divided by, or scores are above 1 and
            its metric is a share of samples.
    """
    device, dtype = ranks.device, next((p.dtype for p in model.parameters()), torch.float32)
    num_samples = len(dataset)  # type: ignore[arg-type]
    batches = torch.split(torch.arange(num_samples), EVALUATION_BATCH)
    own = list(range(ranks.rank, len(batches), ranks.world_size))
    turns = -(-len(batches) // ranks.world_size) if equal_num_passes else len(own)
    weighted = has_weights(task)
    sums = torch.zeros(2 + weighted, len(batches), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    chosen = [batches[own[turn] if turn < len(own) else 0] for turn in range(turns)]
    for turn, (inputs, targets) in enumerate(load_micro_batches(dataset, chosen, device=device, dtype=dtype)):
        with autocast(recipe.precision, device):
            outputs = outputs_of(task, model, inputs)
        if turn < len(own):
            n = len(chosen[turn])
            sums[0, own[turn]] = sum_over_samples(task.losses(outputs, targets), n, f"task {task.name}: losses")
            sums[1, own[turn]] = sum_over_samples(task.scores(outputs, targets), n, f"task {task.name}: scores")
            if weighted:
                sums[2, own[turn]] = sum_of_weights(task, targets, n)
    model.train(was_training)
    loss, score, *weights = ranks.sum_(sums).sum(1).tolist()
    divisor = num_samples
    if weighted:
        (divisor,) = weights
        check_sum_of_weights(task, divisor, name)
    if not math.isfinite(score) and ranks.is_rank_0:
        first = EVALUATION_BATCH * int((~sums[1].isfinite()).nonzero()[0])
        warnings.warn(
            f"task {task.name}: the mean score over {name} is {score}: must be finite; see the task's scores, first those of samples "
            f"{first:,} to {min(first + EVALUATION_BATCH, num_samples) - 1:,}",
            stacklevel=2,
        )
    try:
        metric_of(task.metric).check_share(score / divisor)
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from None
    return Evaluation(loss / divisor, score / divisor, num_samples)


def sum_over_samples(values: Tensor, num_samples: int, what: str) -> Tensor:
    """The sum of losses or scores, a float64 scalar.

    Args:
        values: Shape (n,), of any kind of numbers.
        num_samples: n.
        what: What they are, for the message.

    Raises:
        UserError: If there is not one a sample.
    """
    check_per_sample(values, num_samples, what)
    return values.double().sum()
