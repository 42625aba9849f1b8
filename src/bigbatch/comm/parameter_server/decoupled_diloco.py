r"""Decoupled DiLoCo: workers take local steps, and an outer optimizer steps along the displacements of those who are ready.

Paper:   Douillard et al. 2026, Decoupled DiLoCo for Resilient Distributed Pre-training, arXiv:2604.21428: a central synchroniser with a
         minimum quorum, a grace window, and displacements weighted by their tokens.
Formula: worker m pulls theta and takes H updates of its own inner optimizer, with n_m samples, to theta_m. The server takes the first M
         displacements of W workers (the quorum),
             Delta  = sum_m n_m (theta - theta_m) / sum_m n_m
             u     <- mu u + Delta
             theta <- theta - eta (Delta + mu u)
         A displacement that arrives later is taken into a later update, if it is late by at most T (the grace window); else it is refused.
         The inner update number j of an item has the schedule's rate at
             s = s_0 + j M b                                                [samples]
         with b the samples of a worker's inner update and s_0 the first sample of the M items that are cut together: so M workers side by
         side have one rate, as in `comm.local.diloco`.
Units:   H (period) and j in updates of a worker; T (staleness_bound) in updates of the server.
Differs: the whole model is exchanged at once, not in fragments. A displacement weighs by its samples, in the paper by its tokens times its
         tokens per step. The grace window is counted in updates, not in seconds: in seconds an update would take as many displacements as
         came in time, and the staleness bound counts on M of them (`can_meet_deadlines` in `async_sgd`). Nothing is refused without backup
         workers: fast workers wait at the bound instead. The inner optimizer's state stays with its worker, and is lost with it; the item
         of a lost worker is taken by another, from the newest weights. We know the paper by its abstract and summaries of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigbatch.core.clock import Clock
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Decoupled DiLoCo",
    title="Decoupled DiLoCo for Resilient Distributed Pre-training",
    authors="Douillard et al.",
    year=2026,
    arxiv="2604.21428",
    where="quorum and grace window",
)


class LocalUpdates(NamedTuple):
    """How the samples of a run are cut into work items of several inner updates.

    Attributes:
        local_batch: b, samples of one inner update of one worker.
        period: H, inner updates of a work item.
        quorum: M, work items in one update of the server.
    """

    local_batch: int
    period: int
    quorum: int

    @property
    def update_samples(self) -> int:
        """Samples of one update of the server: M H b."""
        return self.quorum * self.period * self.local_batch

    def batches(self, num_samples: int) -> list[int]:
        """Samples of each inner update of a work item; the last may have fewer.

        >>> LocalUpdates(local_batch=4, period=3, quorum=2).batches(10)
        [4, 4, 2]
        """
        whole, rest = divmod(num_samples, self.local_batch)
        return [self.local_batch] * whole + [rest] * (rest > 0)

    def clock(self, start: int, number: int) -> Clock:
        """Where the schedule stands at an inner update.

        Args:
            start: First sample of the work item.
            number: j, from 0.

        >>> updates = LocalUpdates(local_batch=4, period=3, quorum=2)  # an update of the server has 24 samples
        >>> updates.clock(24, 1), updates.clock(36, 1)  # of both items: 24 + 1 x 2 x 4
        (Clock(samples=32, updates=4), Clock(samples=32, updates=4))
        """
        inner_batch = self.quorum * self.local_batch
        samples = start - start % self.update_samples + number * inner_batch
        return Clock(samples, samples // inner_batch)


@torch.no_grad()
def displacement(pulled: Sequence[Tensor], reached: Sequence[Tensor]) -> list[Tensor]:
    """How far local steps went, theta - theta_m of each tensor, which stands for a gradient.

    >>> displacement([torch.tensor([3.0])], [torch.tensor([1.0])])
    [tensor([2.])]
    """
    return [theta - theta_m for theta, theta_m in zip(pulled, reached, strict=True)]
