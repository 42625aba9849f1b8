"""Running statistics of batch norm over several workers: exactly those of one worker that saw every normalisation group in order.

An update with K groups takes a running mean to (1 - a)^K mean + sum_i (1 - a)^(K - i) a mean_i, which is linear. So every worker keeps
the part that its own groups made, decays it by (1 - a) for each group of the others, and the parts add up when they are wanted: nothing
is exchanged while training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError
from bigbatch.layers.batch_norms import AnyBatchNorm, batch_norms
from bigbatch.layers.split_batch_norm import SplitBatchNorm
from bigbatch.train.data.shares import Share


class RunningStatistics:
    """Keeps the running statistics of a model split over workers between updates.

    Args:
        model: Its statistics are whole when this is made.
        ranks: The workers.

    Raises:
        UserError: If a batch norm keeps a plain average (momentum None), which does not decay.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._norms = [m for m in batch_norms(model).values() if m.track_running_stats]
        auxiliary = [m.auxiliary for m in self._norms if isinstance(m, SplitBatchNorm)]
        self._clean = [m for m in self._norms if m not in auxiliary]
        if ranks.world_size > 1 and any(m.momentum is None for m in self._norms):
            raise UserError("a batch norm with momentum None: keeps no running mean that several workers can share; give it a number")
        self._split()

    @contextmanager
    def during_update(self, share: Share, *, adversarial: bool = False) -> Iterator[None]:
        """Around the passes of this worker's share of one update; `adversarial`: whether its samples pass as adversarial ones too."""
        norms = self._norms if adversarial else self._clean
        self._decay(norms, share.groups_before)
        yield
        self._decay(norms, share.groups_after)

    @contextmanager
    def combined(self) -> Iterator[None]:
        """The statistics over all workers, for evaluation and saving."""
        if self._ranks.world_size > 1:
            for buffer in self._buffers():
                self._ranks.sum_(buffer)
        try:
            yield
        finally:
            self._split()

    def _split(self) -> None:
        """The first worker keeps everything so far."""
        if not self._ranks.is_rank_0:
            for buffer in self._buffers():
                buffer.zero_()

    @torch.no_grad()
    def _decay(self, norms: list[AnyBatchNorm], groups: int) -> None:
        if groups and self._ranks.world_size > 1:
            for m in norms:
                for buffer in (m.running_mean, m.running_var):
                    assert buffer is not None
                    buffer.mul_((1 - (m.momentum or 0.0)) ** groups)

    def _buffers(self) -> Iterator[Tensor]:
        for m in self._norms:
            for buffer in (m.running_mean, m.running_var, m.num_batches_tracked):
                if buffer is not None:
                    yield buffer


@contextmanager
def frozen_batch_norms(model: nn.Module) -> Iterator[None]:
    """Batch norms take no notice of what passes, and random numbers are as before: for a pass that weighs nothing.

    They still normalise by what passes: by split running statistics a deep model's values would overflow, and nothing times infinity
    is no longer nothing.
    """
    tracking = [m for m in batch_norms(model).values() if m.track_running_stats]
    devices = list({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        for m in tracking:
            m.track_running_stats = False
        try:
            yield
        finally:
            for m in tracking:
                m.track_running_stats = True
