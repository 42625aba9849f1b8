"""The gradient of one update, whatever it is cut into. The one owner of the loss divisor."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from bigbatch.tasks.task import Task
from bigbatch.train.feed import MicroBatch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def accumulate_gradients(
    model: nn.Module, task: Task, batches: Iterable[MicroBatch], *, num_samples: int, precision: str, device: torch.device
) -> Tensor:
    """Add the gradient of the *mean* loss over `num_samples` samples to `p.grad`.

    Each micro-batch's summed loss is divided by the samples of the whole update, so pieces of unequal size weigh as they should.

    Args:
        model: In training mode, its gradients cleared.
        task: Gives one loss per sample.
        batches: The update's micro-batches.
        num_samples: Samples in all of them together.
        precision: As in the recipe.
        device: Where the model lives.

    Returns:
        Mean loss, a detached scalar on the device (reading it synchronises).

    Raises:
        ValueError: If the task does not return one loss per sample.
    """
    mean_loss: Tensor | None = None
    for inputs, targets in batches:
        with autocast(precision, device):
            outputs = model(inputs)
        losses = task.losses(outputs, targets)
        if losses.shape != (len(targets),):
            raise ValueError(f"task {task.name}: losses have shape {tuple(losses.shape)}, expected ({len(targets)},), one per sample")
        loss = losses.sum() / num_samples
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss = loss.detach() if mean_loss is None else mean_loss + loss.detach()
    assert mean_loss is not None
    return mean_loss
