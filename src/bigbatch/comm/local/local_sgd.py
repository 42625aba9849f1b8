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
from typing import Annotated, Any, ClassVar, Literal

import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
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


def next_average(updates: int, *, period: int, start_updates: int = 0, period_warmup: int = 0) -> int:
    """The next update after which weights are averaged, once `updates` have been made.

    Args:
        updates: Made so far.
        period: H.
        start_updates: T_s.
        period_warmup: Updates after T_s over which the period grows linearly from 1 to H, in whole updates.

    >>> [next_average(t, period=3, start_updates=4) for t in (0, 4, 6, 7, 8)]
    [7, 7, 7, 10, 10]
    >>> [next_average(t, period=4, period_warmup=8) for t in (0, 1, 2, 3, 5, 8, 12)]  # periods of 1, 1, 1, 2, 3, 4, 4
    [1, 2, 3, 5, 8, 12, 16]
    """
    local, average = max(updates - start_updates, 0), 0
    while average < period_warmup:
        average += min(max(period * (average + 1) // period_warmup, 1), period)
        if average > local:
            return start_updates + average
    return start_updates + average + ((local - average) // period + 1) * period


class LocalSGD(ModelAveraging, AllReduce):
    """Local and post-local SGD; see the module's docstring for the rule.

    Args:
        model: The model; DistributedDataParallel broadcasts the weights of rank 0.
        ranks: The workers.
        period: H.
        start_updates: T_s.
        period_warmup: Updates after T_s over which H grows linearly from 1.
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
        period_warmup: int = 0,
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
        if group_size > 1 and period_warmup:
            raise UserError(f"period_warmup = {period_warmup} with group_size = {group_size}: only one of the two; set one to its default")
        self.period, self.start_updates, self.period_warmup = period, start_updates, period_warmup
        self.momentum, self.group_period = momentum, group_period
        groups = [dist.new_group(list(range(i, i + group_size))) for i in range(0, ranks.world_size, group_size)] if group_size > 1 else []
        self._group = groups[ranks.rank // group_size] if groups else None

    @property
    def is_local(self) -> bool:
        """Whether the next step is local."""
        return self.updates >= self.start_updates

    @property
    def weights_differ(self) -> bool:
        """Whether weights may differ between ranks now."""
        return super().weights_differ and self.is_local

    def divisor(self, global_batch: float, local_batch: float) -> float:
        """The local batch, once steps are local."""
        return local_batch or 1 if self.weights_differ else super().divisor(global_batch, local_batch)

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Gradients stay with their worker once steps are local."""
        return super().sync_context(last and not self.weights_differ)

    def after_step(self, optimizer: Optimizer, updates: int) -> None:
        """Exchange weights if a period ends with this update."""
        was_local, self.updates = self.is_local, updates
        if not was_local:
            return
        if updates == self._next(self.period, self.period_warmup):
            self.exchange(optimizer)
        elif self._group is not None and updates == self._next(self.group_period):
            average_(self._averaged(optimizer), self._group)

    def exchange(self, optimizer: Optimizer) -> None:
        """Average the weights over all workers, and what the optimizer knows of the way, as `momentum` says."""
        if self.ranks.world_size == 1:
            return
        if self.momentum == "reset":
            self.exchange_states(optimizer)
        average_(self._averaged(optimizer))

    def exchange_states(self, optimizer: Optimizer) -> None:
        """Average, keep or reset the optimizer's state alone."""
        states = state_tensors(optimizer)
        if self.momentum == "reset":
            for tensor in states:
                tensor.zero_()
        elif self.momentum == "average" and states and self.ranks.world_size > 1:
            average_(states)

    def _averaged(self, optimizer: Optimizer) -> list[Tensor]:
        return self.weights() + (state_tensors(optimizer) if self.momentum == "average" else [])

    def _next(self, period: int, period_warmup: int = 0) -> int:
        return next_average(self.updates - 1, period=period, start_updates=self.start_updates, period_warmup=period_warmup)


class LocalSGDSection(CommSection):
    """Workers take steps of their own and average their weights every `period` updates."""

    local_steps: ClassVar[bool] = True

    kind: Literal["local_sgd"] = "local_sgd"
    period: Count = 8  # updates
    start_updates: Annotated[int, Field(ge=0)] = 0  # of all-reduce, before
    period_warmup: Annotated[int, Field(ge=0)] = 0  # updates over which the period grows from 1
    momentum: Literal["average", "keep", "reset"] = "average"
    group_size: Count = 1  # workers that average among themselves more often
    group_period: Count | None = None  # updates


@COMMS.register("local_sgd", LocalSGDSection)
def build(c: LocalSGDSection, model: nn.Module, ranks: Ranks, _: Any) -> LocalSGD:
    """How the recipe's workers go together."""
    return LocalSGD(model, ranks, **c.model_dump(exclude={"kind", "label_skew"}))
