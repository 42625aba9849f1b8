"""Running statistics of batch norm over several workers: exactly those of one worker that saw every normalisation group in order.

An update with K groups takes a running mean to (1 - a)^K mean + sum_i (1 - a)^(K - i) a mean_i, which is linear. So every worker keeps
the part that its own groups made, decays it by (1 - a) for each group of the others, and the parts add up when they are wanted: nothing
is exchanged while training. Adding them up changes no part, and a checkpoint has them all: when a run is evaluated, saved or resumed
changes no bit of what follows.
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
        model: Its statistics are whole when this is made: the first worker keeps them, the others begin with zero.
        ranks: The workers.

    Attributes:
        micro_batch: Most samples in one pass, once it is known.

    Raises:
        UserError: If a batch norm keeps a plain average (momentum None), which does not decay.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks, self.micro_batch = ranks, 0
        self._own: dict[str, Tensor] | None = None  # while those of the model are of all workers
        self._named = {name: m for name, m in batch_norms(model).items() if m.track_running_stats}
        self._norms = list(self._named.values())
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
        if self._ranks.world_size == 1:
            yield
            return
        self._own = {name: buffer.clone() for name, buffer in self._buffers()}
        try:
            for _, buffer in self._buffers():
                self._ranks.sum_(buffer)
            yield
        finally:
            for name, buffer in self._buffers():
                buffer.copy_(self._own[name])
            self._own = None

    def state_dict(self) -> dict[str, Tensor]:
        """This worker's part; nothing of a single worker, whose model has all."""
        if self._ranks.world_size == 1:
            return {}
        return self._own if self._own is not None else dict(self._buffers())

    def load_state_dicts(self, states: list[dict[str, Tensor]]) -> None:
        """Take up the parts of the workers that saved. Where these were more or fewer, the first worker keeps what the model has.

        Raises:
            ValueError: If a part is not of this model.
        """
        if len(states) != self._ranks.world_size or not all(states):
            self._split()
            return
        for name, buffer in self._buffers():
            saved = states[self._ranks.rank].get(name)
            if not isinstance(saved, Tensor) or saved.shape != buffer.shape or saved.dtype != buffer.dtype or not saved.isfinite().all():
                like = f"a finite tensor of shape {tuple(buffer.shape)} and type {buffer.dtype}"
                raise ValueError(f"workers.{self._ranks.rank}.statistics.{name}: must be {like}")
            buffer.copy_(saved)

    def _split(self) -> None:
        """The first worker keeps everything so far."""
        if not self._ranks.is_rank_0:
            for _, buffer in self._buffers():
                buffer.zero_()

    @torch.no_grad()
    def _decay(self, norms: list[AnyBatchNorm], groups: int) -> None:
        if groups and self._ranks.world_size > 1:
            for m in norms:
                for buffer in (m.running_mean, m.running_var):
                    assert buffer is not None
                    buffer.mul_((1 - (m.momentum or 0.0)) ** groups)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, m in self._named.items():
            for kind in ("running_mean", "running_var", "num_batches_tracked"):
                if (buffer := getattr(m, kind)) is not None:
                    yield f"{name}.{kind}", buffer


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
