"""Tokens of a sample: what turns a batch in samples into one in tokens."""

import torch

from bigbatch.core.checks import UserError
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Runner
from bigbatch.runner.task import TaskRunner
from bigbatch.tasks.optional_parts import WEIGHTS, splits_of, sum_of_weights, told_tokens_per_sample
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.stream_reader import is_stream

LOOKED_AT, PIECE = 1024, 64
"""Samples whose weights are added up, and of these so many at a time."""


def tokens_per_sample(runner: Runner, recipe: Recipe) -> float | None:
    """Tokens of a sample, on average: as the task says, else as the recipe's budget does; None if neither does.

    Args:
        runner: Of a task, or of anything else, which then can't say.
        recipe: Of the run.

    Raises:
        UserError: If the task's `tokens_per_sample` is neither a number above zero nor "weights", or its weights add up to none.
    """
    told = told_tokens_per_sample(runner.task) if isinstance(runner, TaskRunner) else None
    if told == WEIGHTS:
        return mean_weight(runner.task)  # type: ignore[attr-defined]
    return told if isinstance(told, float) else recipe.budget.tokens_per_sample


def mean_weight(task: Task) -> float:
    """Mean weight of at most 1,024 training samples, evenly spaced; of a stream its first ones. The model is not called.

    Args:
        task: With `weights`.

    Raises:
        UserError: If they add up to nothing, or one of them is negative or not finite.
    """
    train = splits_of(task).train
    size = len(train)  # type: ignore[arg-type]
    looked_at = min(LOOKED_AT, size)
    index = torch.arange(looked_at) if is_stream(train) else torch.linspace(0, size - 1, looked_at, dtype=torch.float64).round().long()
    pieces = list(index.view(-1).tensor_split(list(range(PIECE, looked_at, PIECE))))
    batches = load_micro_batches(train, pieces, device=torch.device("cpu"), dtype=torch.float32)
    total = sum(float(sum_of_weights(task, targets, len(piece))) for piece, (_, targets) in zip(pieces, batches, strict=True))
    if not 0 < total < float("inf"):
        what = f"task {task.name}: weights of {looked_at:,} samples add up to {total:g}"
        raise UserError(f"{what}: tokens can't be counted; see its weights()")
    return total / looked_at
