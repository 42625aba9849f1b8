"""What a task may define besides its protocol. A task without any of it has pairs of tensors, equally heavy.

    collate(samples) -> (inputs, targets)     a batch from a list of samples, given to the DataLoader; ragged samples need it
    outputs(model, inputs) -> outputs         calls the model, once; else it is called by the structure of the inputs
    weights(targets) -> Tensor, shape (n,)    how much each sample counts, such as its number of tokens that are predicted
    tokens_per_sample                         a number, or "weights" where those are numbers of tokens: their mean is measured

With `weights`, losses and scores are the *sums* of each sample, over its tokens, and all means are sums over samples divided by the sum of
the weights: nats per token. With `tokens_per_sample`, noise scales are reported in tokens beside samples; nothing else changes.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import call_model
from bigbatch.tasks.task import Splits, Task

WEIGHTS: Literal["weights"] = "weights"


class Collated(Dataset[Any]):
    """A data set with the task's own way to make a batch of its samples.

    Args:
        dataset: Map-style.
        collate: Makes (inputs, targets) of a list of samples.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def splits_of(task: Task) -> Splits:
    """The data of a task, with its `collate` if it has one.

    Raises:
        UserError: If these are no three data sets.
    """
    given, collate = task.splits(), getattr(task, "collate", None)
    if not isinstance(given, Splits) and (not isinstance(given, tuple | list) or len(given) != len(Splits._fields)):
        raise UserError(f"task {task.name}: splits() gave {type(given).__name__}; give Splits(train, validation, test)")
    splits = Splits(*given)
    return splits if collate is None else Splits(*(Collated(dataset, collate) for dataset in splits))


def outputs_of(task: Task, model: nn.Module, inputs: Any) -> Any:
    """What the model makes of a batch's inputs.

    Raises:
        UserError: If the model does not take them.
    """
    if (outputs := getattr(task, "outputs", None)) is not None:
        return outputs(model, inputs)
    return model(inputs) if isinstance(inputs, Tensor) else call_model(model, inputs, name=f"task {task.name}")


def has_weights(task: Task) -> bool:
    """Whether samples count by the task's `weights`."""
    return getattr(task, "weights", None) is not None


def told_tokens_per_sample(task: Task) -> float | Literal["weights"] | None:
    """What a task says of its tokens per sample: a number, "weights" (the mean of these), or nothing.

    Raises:
        UserError: If it is neither, or the task has no `weights`.
    """
    told = getattr(task, "tokens_per_sample", None)
    if told is None or (told == WEIGHTS and has_weights(task)):
        return told
    if told == WEIGHTS:
        raise UserError(f"task {task.name}: tokens_per_sample = 'weights', but it has no weights(targets); give it, or a number")
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < float("inf"):
        raise UserError(f"task {task.name}: tokens_per_sample = {told!r}: must be a number above zero, or 'weights'")
    return float(told)


def sum_of_weights(task: Task, targets: Any, num_samples: int) -> Tensor:
    """The sum of the weights of a batch, a float64 scalar on its device; NaN if one of them is negative or not finite.

    Args:
        task: With `weights`.
        targets: Of the batch.
        num_samples: In the batch.

    Raises:
        UserError: If there is not one weight a sample.
    """
    weights = task.weights(targets)  # type: ignore[attr-defined]
    if not isinstance(weights, Tensor) or weights.shape != (num_samples,):
        told = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"type {type(weights).__name__}"
        raise UserError(f"task {task.name}: weights have {told}: must be one per sample, ({num_samples},), such as its number of tokens")
    wide = weights.detach().double()
    return torch.where(((wide >= 0) & wide.isfinite()).all(), wide.sum(), torch.nan)


def check_sum_of_weights(task: Task, total: float, what: str) -> None:
    """Refuse a sum of weights that losses can't be divided by.

    Args:
        task: With `weights`.
        total: The sum; NaN as in `sum_of_weights`.
        what: Whose sum it is, such as "the update".

    Raises:
        UserError: If it is zero, or a weight was negative or not finite.
    """
    if total != total or total == float("inf"):
        raise UserError(
            f"task {task.name}: a weight in {what} is negative or not finite: must be zero or a positive number; see its weights()"
        )
    if total <= 0:
        raise UserError(
            f"task {task.name}: the weights of {what} add up to {total:g}: must be above zero, for the loss is divided by their sum; drop "
            "samples without a token that counts, or raise the batch"
        )
