"""The gradient of one update, whatever it is cut into. The one owner of the loss divisor."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.layers.split_batch_norm import adversarial_stream
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.update.running_statistics import frozen_norms


class Pass(NamedTuple):
    """A forward and backward pass that is not a plain micro-batch."""

    inputs: Tensor  # (n, ...)
    targets: Tensor  # (n, ...)
    weight: float | Tensor = 1.0  # of its losses: of all, or of each, (n,)
    adversarial: bool = False  # goes through the auxiliary batch norms; its losses are not in the sum


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def alone(last: bool) -> AbstractContextManager[object]:  # noqa: ARG001
    """Nothing to exchange around a pass."""
    return nullcontext()


def accumulate_gradients(
    model: nn.Module,
    task: Task,
    batches: Iterable[MicroBatch | Pass],
    *,
    divisor: float,
    precision: str,
    device: torch.device,
    sync_context: Callable[[bool], AbstractContextManager[object]] = alone,
    passed: Callable[[int, float], None] | None = None,
    idle: int = 0,
) -> Tensor:
    """Add the gradient of the sum of all losses over `divisor` to `p.grad`: of the mean, if it is the number of samples.

    Each sample's loss weighs the same, so pieces of unequal size weigh as they should.

    Args:
        model: In training mode, its gradients cleared.
        task: Gives one loss per sample.
        batches: The micro-batches, weighing one unless they say otherwise.
        divisor: Samples in the whole update.
        precision: As in the recipe.
        device: Where the model lives.
        sync_context: Context of each pass, told whether it is the last (see `bigbatch.comm`).
        passed: Called after each pass with its samples (0 if idle) and the divisor.
        idle: So many passes, the first, weigh nothing and leave no trace in batch norms.

    Returns:
        *Sum* of the losses, unweighted, a detached scalar on the device (reading it synchronises); without idle and adversarial passes.

    Raises:
        ValueError: If the task does not return one loss per sample.
    """
    sum_loss = torch.zeros((), dtype=torch.float64, device=device)
    for number, last, batch in _and_whether_last(batches):
        inputs, targets, weight, adversarial = batch if isinstance(batch, Pass) else Pass(*batch)
        counts = number >= idle
        with (
            sync_context(last),
            nullcontext() if counts else frozen_norms(model),
            adversarial_stream(model) if adversarial else nullcontext(),
        ):
            with autocast(precision, device):
                outputs = model(inputs)
            losses = task.losses(outputs, targets)
            if losses.shape != (len(targets),):
                raise ValueError(f"task {task.name}: losses have shape {tuple(losses.shape)}, expected ({len(targets)},), one per sample")
            of_loss = torch.full_like(losses, 1 / divisor if counts else 0.0)
            losses.backward(of_loss * (weight.to(losses, non_blocking=True) if isinstance(weight, Tensor) else weight))  # type: ignore[no-untyped-call]
        if passed is not None:
            passed(len(targets) if counts else 0, divisor)
        if counts and not adversarial:
            sum_loss += losses.detach().sum()
    return sum_loss


def _and_whether_last(batches: Iterable[MicroBatch | Pass]) -> Iterator[tuple[int, bool, MicroBatch | Pass]]:
    iterator = iter(batches)
    number, batch = 0, next(iterator)
    for number, following in enumerate(iterator, 1):
        yield number - 1, False, batch
        batch = following
    yield number, True, batch
