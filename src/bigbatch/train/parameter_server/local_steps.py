"""The local steps of a worker of a parameter server: one work item is several updates of an optimizer of its own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates, displacement
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.train.setup.build import build_optimizer


class LocalSteps:
    """Takes local steps by the recipe's optimizer, whose state it keeps from item to item, at the rates of `LocalUpdates.clock`.

    Args:
        recipe: Of the run.
        model: With the pulled weights, before each item.
        updates: How an item is cut.
        gradient: Adds the mean gradient of a range of samples to `p.grad`, and returns the sum of their losses.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, updates: LocalUpdates, gradient: Callable[[WorkItem], Tensor]) -> None:
        self.optimizer = build_optimizer(model, recipe)
        self._clip_norm, self._schedule = recipe.optimizer.clip_norm, schedule_of(recipe)
        self._parameters, self._updates, self._gradient = list(model.parameters()), updates, gradient

    def take(self, work: WorkItem) -> tuple[Tensor, list[Tensor]]:
        """Take the steps of a work item.

        Returns:
            Sum of the losses, and for each parameter how far it went: the pulled weights minus those reached.
        """
        pulled = [p.detach().clone() for p in self._parameters]
        start, sum_loss = work.start, torch.zeros((), dtype=torch.float64, device=pulled[0].device)
        for number, num_samples in enumerate(self._updates.batches(work.num_samples)):
            sum_loss += self._gradient(work._replace(start=start, num_samples=num_samples))
            if self._clip_norm is not None:
                nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            set_lr(self.optimizer, self._schedule(self._updates.clock(work.start, number)))
            self.optimizer.step()
            self.optimizer.zero_grad()
            start += num_samples
        return sum_loss, displacement(pulled, self._parameters)
