"""The gradient of one update, whatever it is cut into. The one owner of the loss divisor."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bigbatch.core.clock import Clock
from bigbatch.noise.multiplicative_noise import loss_weights
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.feed import MicroBatch
from bigbatch.train.running_statistics import frozen_norms
from bigbatch.train.share import Share


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def alone(last: bool) -> AbstractContextManager[object]:  # noqa: ARG001
    """Nothing to exchange around a pass."""
    return nullcontext()


def accumulate_gradients(
    model: nn.Module,
    task: Task,
    batches: Iterable[MicroBatch],
    *,
    divisor: float,
    precision: str,
    device: torch.device,
    passing: Callable[[bool], AbstractContextManager[object]] = alone,
    passed: Callable[[int, float], None] | None = None,
    idle: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """Add the gradient of the sum of all losses over `divisor` to `p.grad`: of the mean, if it is the number of samples.

    Each sample's loss weighs the same, so pieces of unequal size weigh as they should.

    Args:
        model: In training mode, its gradients cleared.
        task: Gives one loss per sample.
        batches: The micro-batches.
        divisor: Samples in the whole update.
        precision: As in the recipe.
        device: Where the model lives.
        passing: Context of each pass, told whether it is the last (see `bigbatch.comm`).
        passed: Called after each pass with its samples (0 if idle) and the divisor.
        idle: So many passes, the first, weigh nothing and leave no trace in batch norms.
        weights: Factor of each loss's gradient, shape (samples of all passes that are not idle,); None for 1. Losses are returned without.

    Returns:
        *Sum* of the losses, a detached scalar on the device (reading it synchronises); without idle passes.

    Raises:
        ValueError: If the task does not return one loss per sample.
    """
    sum_loss, seen = torch.zeros((), dtype=torch.float64, device=device), 0
    for number, last, (inputs, targets) in _and_whether_last(batches):
        counts = number >= idle
        with passing(last), nullcontext() if counts else frozen_norms(model):
            with autocast(precision, device):
                outputs = model(inputs)
            losses = task.losses(outputs, targets)
            if losses.shape != (len(targets),):
                raise ValueError(f"task {task.name}: losses have shape {tuple(losses.shape)}, expected ({len(targets)},), one per sample")
            of_loss = torch.full_like(losses, 1 / divisor if counts else 0.0)
            if weights is not None and counts:
                of_loss *= weights[seen : seen + len(targets)].to(of_loss)
            losses.backward(of_loss)  # type: ignore[no-untyped-call]
        if passed is not None:
            passed(len(targets) if counts else 0, divisor)
        if counts:
            seen += len(targets)
            sum_loss += losses.detach().sum()
    return sum_loss


def noisy_weights(recipe: Recipe, clock: Clock, num_samples: int, share: Share) -> Tensor | None:
    """Factors of this worker's losses in the update after `clock`, where the recipe adds multiplicative noise."""
    if recipe.batch.noise_batch is None:
        return None
    weights = loss_weights(num_samples, recipe.batch.noise_batch, seed=recipe.seed, start=clock.samples)
    return weights[share.start : share.start + share.num_samples]


def _and_whether_last(batches: Iterable[MicroBatch]) -> Iterator[tuple[int, bool, MicroBatch]]:
    iterator = iter(batches)
    number, batch = 0, next(iterator)
    for number, following in enumerate(iterator, 1):
        yield number - 1, False, batch
        batch = following
    yield number, True, batch
