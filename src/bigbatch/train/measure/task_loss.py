"""A task's mean loss over fixed micro-batches, as measurements take it that know no task: a module, losses and batches.

`bigbatch.curvature` calls a module by the structure of its inputs and takes the mean over samples. A task that calls its model itself gets
a module around it; losses of a task with weights are multiplied by samples / sum of weights, so that their mean over samples is the mean
over what the weights count.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.tasks.optional_parts import check_sum_of_weights, has_weights, sum_of_weights
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import MicroBatch


class CountedBatch(NamedTuple):
    """A micro-batch with its number of samples."""

    inputs: Any
    targets: Any
    num_samples: int


class CalledByTask(nn.Module):
    """A model as its task calls it.

    Args:
        task: With `outputs`.
        model: Of the task.
    """

    def __init__(self, task: Any, model: nn.Module) -> None:
        super().__init__()
        self._task, self.model = task, model
        self.training = model.training

    def forward(self, inputs: Any) -> Any:
        """The task's outputs."""
        return self._task.outputs(self.model, inputs)


class TaskLoss:
    """The mean loss of a task.

    Args:
        task: Gives losses and scores.
        pairs: Micro-batches.
        sizes: Their numbers of samples.
        ranks: The workers that share the samples; all of them build one.

    Attributes:
        batches: For `bigbatch.curvature`: a `CountedBatch` each.

    Raises:
        UserError: If the task's weights can't be divided by.
    """

    def __init__(self, task: Task, pairs: Iterable[MicroBatch], sizes: Sequence[int], *, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._task, self._factor = task, 1.0
        self._calls = getattr(task, "outputs", None) is not None
        counted = [CountedBatch(inputs, targets, n) for (inputs, targets), n in zip(pairs, sizes, strict=True)]
        self.batches: list[Any] = [batch._replace(inputs=(batch.inputs,)) if self._calls else batch for batch in counted]
        if has_weights(task):
            own = [float(sum_of_weights(task, batch.targets, batch.num_samples)) for batch in self.batches]
            sums = torch.tensor([sum(sizes), sum(own)], dtype=torch.float64, device=ranks.device)
            samples, weights = ranks.sum_(sums).tolist()
            check_sum_of_weights(task, weights, "the samples that are looked at")
            self._factor = samples / weights

    def module(self, model: nn.Module) -> nn.Module:
        """The model, to be called by the structure of the inputs of `batches`."""
        return CalledByTask(self._task, model) if self._calls else model

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """One loss per sample; their mean over all samples is the task's."""
        return self._per_weight(self._task.losses(outputs, targets))

    def scores(self, outputs: Any, targets: Any) -> Tensor:
        """One score per sample; their mean over all samples is the task's."""
        return self._per_weight(self._task.scores(outputs, targets))

    def _per_weight(self, values: Tensor) -> Tensor:
        return values if self._factor == 1.0 else values * self._factor
