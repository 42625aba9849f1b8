"""Loss and metric over a data set: every sample once, sums divided by counts."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import autocast

EVALUATION_BATCH = 500


class Evaluation(NamedTuple):
    """Means over a data set."""

    loss: float
    score: float  # mean of the task's scores, in [0, 1]
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

    Returns:
        Mean loss and score over all samples of `dataset`.
    """
    device, dtype = ranks.device, next((p.dtype for p in model.parameters()), torch.float32)
    num_samples = len(dataset)  # type: ignore[arg-type]
    batches = torch.split(torch.arange(num_samples), EVALUATION_BATCH)
    own = list(range(ranks.rank, len(batches), ranks.world_size))
    turns = -(-len(batches) // ranks.world_size) if equal_num_passes else len(own)
    sums = torch.zeros(2, len(batches), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    chosen = [batches[own[turn] if turn < len(own) else 0] for turn in range(turns)]
    for turn, (inputs, targets) in enumerate(load_micro_batches(dataset, chosen, device=device, dtype=dtype)):
        with autocast(recipe.precision, device):
            outputs = model(inputs)
        if turn < len(own):
            sums[0, own[turn]] = task.losses(outputs, targets).double().sum()
            sums[1, own[turn]] = task.scores(outputs, targets).double().sum()
    model.train(was_training)
    loss, score = ranks.sum_(sums).sum(1).tolist()
    return Evaluation(loss / num_samples, score / num_samples, num_samples)
