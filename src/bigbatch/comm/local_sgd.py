r"""Local SGD: workers take local steps and average their weights periodically.

Paper:   Lin, Stich, Patel, Jaggi 2018, Don't Use Large Mini-Batches, Use Local SGD, arXiv:1808.07217, Algorithm 1.
Formula: worker i, update t, local batch B_i:
             w_i <- w_i - step(mean gradient over B_i)
             every H updates:  w_i <- (1/W) sum_j w_j
         Post-local: the first T_s updates are those of all-reduce.
Units:   H (period) and T_s (start_updates) in updates.
Differs: momentum and other optimizer state of a parameter's shape is averaged with the weights ("average"); the paper keeps it local
         ("keep") or sets it to zero ("reset"). With H = 1 and SGD, "average" is exactly all-reduce.
         Hierarchical averaging, within a group of workers more often than over all workers, is the paper's extension.
"""

from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.model_averaging import ModelAveraging, average_, state_tensors
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.methods import COMMS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Count
from bigbatch.recipe.sections import CommSection

PAPER = Paper(
    method="Local SGD",
    title="Don't Use Large Mini-Batches, Use Local SGD",
    authors="Lin, Stich, Patel, Jaggi",
    year=2018,
    arxiv="1808.07217",
    where="Algorithm 1",
    study="studies/compression",
)


def next_average(updates: int, *, period: int, start_updates: int = 0) -> int:
    """The next update after which weights are averaged, once `updates` have been made.

    >>> [next_average(t, period=3, start_updates=4) for t in (0, 4, 6, 7, 8)]
    [7, 7, 7, 10, 10]
    """
    return start_updates + (max(updates - start_updates, 0) // period + 1) * period


class LocalSGD(ModelAveraging, AllReduce):
    """Local and post-local SGD; see the module's docstring for the rule.

    Args:
        model: The model; DistributedDataParallel broadcasts the weights of rank 0.
        ranks: The workers.
        period: H.
        start_updates: T_s.
        momentum: What happens to the optimizer's state when weights are averaged.
        group_size: Workers in a group, which averages its weights every `group_period` updates; must divide the number of workers.
        group_period: Updates between averages within a group; must divide `period`.

    Raises:
        UserError: If a period or the group size does not divide evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks = SINGLE_PROCESS,
        *,
        period: int = 8,
        start_updates: int = 0,
        momentum: Literal["average", "keep", "reset"] = "average",
        group_size: int = 1,
        group_period: int | None = None,
    ) -> None:
        check_positive("period", period)
        group_period = group_period or period
        if period % group_period:
            raise UserError(f"group_period = {group_period}: must divide period = {period}; choose a divisor")
        if ranks.world_size % group_size:
            raise UserError(f"group_size = {group_size}: must divide the {ranks.world_size} workers; choose a divisor")
        super().__init__(model, ranks)
        self.period, self.start_updates, self.momentum, self.group_period = period, start_updates, momentum, group_period
        groups = [dist.new_group(list(range(i, i + group_size))) for i in range(0, ranks.world_size, group_size)] if group_size > 1 else []
        self._group = groups[ranks.rank // group_size] if groups else None

    @property
    def weights_differ(self) -> bool:
        """Whether the next step is local."""
        return super().weights_differ and self.updates >= self.start_updates

    def divisor(self, global_batch: float, local_batch: float) -> float:
        """The local batch, once steps are local."""
        return local_batch or 1 if self.weights_differ else super().divisor(global_batch, local_batch)

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Gradients stay with their worker once steps are local."""
        return super().sync_context(last and not self.weights_differ)

    def after_step(self, optimizer: Optimizer, updates: int) -> None:
        """Average the weights if a period ends with this update."""
        was_local, self.updates = self.weights_differ, updates
        if not was_local:
            return
        if updates == next_average(updates - 1, period=self.period, start_updates=self.start_updates):
            self._average_over(optimizer, None)
        elif self._group is not None and updates == next_average(updates - 1, period=self.group_period, start_updates=self.start_updates):
            self._average_over(optimizer, self._group)

    @torch.no_grad()
    def _average_over(self, optimizer: Optimizer, group: Any) -> None:
        states = state_tensors(optimizer)
        if self.momentum == "reset" and group is None:
            for tensor in states:
                tensor.zero_()
        average_(self.weights() + (states if self.momentum == "average" else []), group)


class LocalSGDSection(CommSection):
    """Workers take steps of their own and average their weights every `period` updates."""

    kind: Literal["local_sgd"] = "local_sgd"
    period: Count = 8  # updates
    start_updates: Annotated[int, Field(ge=0)] = 0  # of all-reduce, before
    momentum: Literal["average", "keep", "reset"] = "average"
    group_size: Count = 1  # workers that average among themselves more often
    group_period: Count | None = None  # updates


@COMMS.register("local_sgd", LocalSGDSection)
def build(c: LocalSGDSection, model: nn.Module, ranks: Ranks, _: Any) -> LocalSGD:
    """How the recipe's workers go together."""
    return LocalSGD(model, ranks, **c.model_dump(exclude={"kind", "label_skew"}))
