"""Loss and metric over a data set: every sample once, sums divided by counts."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from bigbatch.tasks.task import Task
from bigbatch.train.feed import feed
from bigbatch.train.step import autocast

EVALUATION_BATCH = 500


class Evaluation(NamedTuple):
    """Means over a data set."""

    loss: float
    score: float  # mean of the task's scores, in [0, 1]
    num_samples: int


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, dataset: Dataset[Any], *, precision: str, device: torch.device) -> Evaluation:
    """Evaluate in evaluation mode; the model's mode is restored.

    Returns:
        Mean loss and score over all samples of `dataset`.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    num_samples = len(dataset)  # type: ignore[arg-type]
    batches = torch.split(torch.arange(num_samples), EVALUATION_BATCH)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    score = torch.zeros((), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for inputs, targets in feed(dataset, batches, device=device, dtype=dtype):
        with autocast(precision, device):
            outputs = model(inputs)
        loss += task.losses(outputs, targets).double().sum()
        score += task.scores(outputs, targets).double().sum()
    model.train(was_training)
    return Evaluation(float(loss) / num_samples, float(score) / num_samples, num_samples)
