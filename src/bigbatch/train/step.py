"""The gradient of one update, whatever it is cut into. The one owner of the loss divisor."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bigbatch.tasks.task import Task
from bigbatch.train.feed import MicroBatch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def accumulate_gradients(
    model: nn.Module, task: Task, batches: Iterable[MicroBatch], *, num_samples: int, precision: str, device: torch.device
) -> Tensor:
    """Add the gradient of the *mean* loss over `num_samples` samples to `p.grad`.

    Each sample's loss weighs one over the samples of the whole update, so pieces of unequal size weigh as they should.

    Args:
        model: In training mode, its gradients cleared.
        task: Gives one loss per sample.
        batches: The update's micro-batches.
        num_samples: Samples in all of them together.
        precision: As in the recipe.
        device: Where the model lives.

    Returns:
        *Sum* of the losses, a detached scalar on the device (reading it synchronises).

    Raises:
        ValueError: If the task does not return one loss per sample.
    """
    sum_loss: Tensor | None = None
    for inputs, targets in batches:
        with autocast(precision, device):
            outputs = model(inputs)
        losses = task.losses(outputs, targets)
        if losses.shape != (len(targets),):
            raise ValueError(f"task {task.name}: losses have shape {tuple(losses.shape)}, expected ({len(targets)},), one per sample")
        losses.backward(torch.full_like(losses, 1 / num_samples))  # type: ignore[no-untyped-call]
        sum_loss = losses.detach().sum() if sum_loss is None else sum_loss + losses.detach().sum()
    assert sum_loss is not None
    return sum_loss
