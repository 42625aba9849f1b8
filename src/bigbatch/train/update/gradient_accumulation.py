"""The gradient of one update, whatever it is cut into. The one owner of the loss divisor."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import num_rows
from bigbatch.layers.split_batch_norm import adversarial_stream
from bigbatch.tasks.optional_parts import outputs_of
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.precision import autocast
from bigbatch.train.update.running_statistics import frozen_batch_norms


class Pass(NamedTuple):
    """A forward and backward pass of n samples."""

    inputs: Any  # a tensor, or a structure of tensors
    targets: Any
    weight: float | Tensor = 1.0  # of its losses: of all, or of each, (n,)
    adversarial: bool = False  # goes through the auxiliary batch norms; its losses are not in the sum
    num_samples: int | None = None  # n; rows of the targets' first tensor, where it was not counted
    sum_weights: float | None = None  # of the task's weights of its samples; None where all samples count the same

    @property
    def samples(self) -> int:
        """N."""
        return self.num_samples if self.num_samples is not None else num_rows(self.targets)


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
    after_backward: Callable[[int, float], None] | None = None,
    idle: int = 0,
) -> Tensor:
    """Add the gradient of the sum of all losses over `divisor` to `p.grad`: of the mean, if it is the number of samples.

    Each sample's loss weighs the same, so pieces of unequal size weigh as they should. With weights, losses are sums over what is counted,
    such as tokens, and `divisor` is the sum of all weights of the update: the mean over tokens, however they are cut.

    Args:
        model: In training mode, its gradients cleared.
        task: Gives one loss per sample, and calls the model.
        batches: The micro-batches, weighing one unless they say otherwise; passes, or pairs of inputs and targets.
        divisor: Samples in the whole update, or the sum of their weights.
        precision: As in the recipe.
        device: Where the model lives.
        sync_context: Context of each pass, told whether it is the last (see `bigbatch.comm`).
        after_backward: Called after each pass with its samples (0 if it weighs nothing) and the divisor: what the sum of their losses was
            divided by, each loss taken relative to the mean weight of the pass's samples.
        idle: So many passes, the first, weigh nothing and leave no trace in batch norms.

    Returns:
        *Sum* of the losses, unweighted, a detached scalar on the device (reading it synchronises); without idle and adversarial passes.

    Raises:
        UserError: If the task does not return one loss per sample, or the model does not take the inputs.
    """
    sum_loss = torch.zeros((), dtype=torch.float64, device=device)
    for number, last, batch in _and_whether_last(batches):
        piece = batch if isinstance(batch, Pass) else Pass(*batch)
        n, weight, adversarial, sum_weights = piece.samples, piece.weight, piece.adversarial, piece.sum_weights
        counts = number >= idle
        with (
            sync_context(last),
            nullcontext() if counts else frozen_batch_norms(model),
            adversarial_stream(model) if adversarial else nullcontext(),
        ):
            with autocast(precision, device):
                outputs = outputs_of(task, model, piece.inputs)
            losses = task.losses(outputs, piece.targets)
            check_per_sample(losses, n, "losses", task)
            of_loss = torch.full_like(losses, 1 / divisor if counts else 0.0)
            losses.backward(of_loss * (weight.to(losses, non_blocking=True) if isinstance(weight, Tensor) else weight))  # type: ignore[no-untyped-call]
        if after_backward is not None:
            of_mean_weight = divisor if not sum_weights else divisor * n / sum_weights
            after_backward(n if counts and sum_weights != 0 else 0, of_mean_weight)
        if counts and not adversarial:
            sum_loss += losses.detach().sum()
    return sum_loss


def check_per_sample(values: Tensor, num_samples: int, what: str, task: Task | None = None) -> None:
    """Refuse losses or scores that are not one a sample.

    Args:
        values: Of a task.
        num_samples: n.
        what: What they are, for the message.
        task: Whose they are, for the message.

    Raises:
        UserError: Unless their shape is (n,).
    """
    if not isinstance(values, Tensor) or values.shape != (num_samples,):
        told = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        whose = f"task {task.name}: " if task is not None else ""
        raise UserError(
            f"{whose}{what} have {told}: must be one per sample, ({num_samples},); of one per token, take each sample's mean, or its sum "
            "where Task.weights gives its number of tokens"
        )


def _and_whether_last(batches: Iterable[MicroBatch | Pass]) -> Iterator[tuple[int, bool, MicroBatch | Pass]]:
    iterator = iter(batches)
    number, batch = 0, next(iterator)
    for number, following in enumerate(iterator, 1):
        yield number - 1, False, batch
        batch = following
    yield number, True, batch
