"""Running statistics of batch norm for averaged weights: those that a pass over training samples gives, not those of each worker.

Where workers hold weights of their own, the mean of their running statistics belongs to no model that anyone evaluates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bigbatch.comm.gossip import Gossip
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.layers.ghost_batch_norm import batch_norms
from bigbatch.recipe import Recipe
from bigbatch.train.build import DTYPES
from bigbatch.train.feed import feed
from bigbatch.train.micro_batch import micro_batches
from bigbatch.train.running_statistics import RunningStatistics
from bigbatch.train.sampler import index_batches
from bigbatch.train.share import Share, share_of
from bigbatch.train.step import autocast

SAMPLES = 2048
"""Training samples of the pass, shared out among the workers; more where that is less than one normalisation group each."""


class RecomputedStatistics(RunningStatistics):
    """Computes running statistics anew whenever they are wanted: plain means over the normalisation groups of the same samples each time.

    Args:
        model: As the worker trains it.
        ranks: The workers.
        recipe: For its batch, precision and seed.
        train: The training set.
        micro_batch: Most samples in one pass.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, *, recipe: Recipe, train: Any, micro_batch: int) -> None:
        super().__init__(model, ranks)
        self._model, self._recipe, self._train, self._micro_batch = model, recipe, train, micro_batch

    @contextmanager
    def of_update(self, share: Share, *, adversarial: bool = False) -> Iterator[None]:  # noqa: ARG002
        """What the passes of an update leave is not used."""
        yield

    @contextmanager
    @torch.no_grad()
    def whole(self) -> Iterator[None]:
        """Statistics of the model as it now is."""
        norms = [m for m in batch_norms(self._model).values() if m.track_running_stats]
        if norms:
            self._pass(norms)
        yield

    def _pass(self, norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
        recipe, ranks = self._recipe, self._ranks
        ghost, device = recipe.batch.ghost_batch, ranks.device
        group = recipe.batch.global_batch if ghost == "global" else ghost or 1
        num_samples = min(max(SAMPLES, group * ranks.world_size), recipe.num_train_samples)
        share = share_of(num_samples, ranks.rank, ranks.world_size, group)
        sizes = micro_batches(share.num_samples, self._micro_batch, group) if share.num_samples else []
        momenta, was_training = [m.momentum for m in norms], self._model.training
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a plain mean over groups
        self._model.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), autocast(recipe.precision, device):
            indices = index_batches(recipe.seed, recipe.num_train_samples, share.start, iter(sizes))
            for inputs, _ in feed(self._train, indices, device=device, dtype=DTYPES[recipe.precision]):
                self._model(inputs)
        self._model.train(was_training)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            assert m.running_mean is not None
            assert m.running_var is not None
            assert m.num_batches_tracked is not None
            groups = m.num_batches_tracked.to(m.running_mean.dtype)
            sums = ranks.sum_(torch.cat([m.running_mean * groups, m.running_var * groups, groups.reshape(1)]))
            m.running_mean.copy_(sums[: m.num_features] / sums[-1])
            m.running_var.copy_(sums[m.num_features : -1] / sums[-1])
            m.num_batches_tracked.copy_(sums[-1])


def build_statistics(comm: Comm, recipe: Recipe, train: Any, micro_batch: int) -> RunningStatistics:
    """Running statistics kept while training; computed anew where workers' weights go apart for the whole run."""
    if isinstance(comm, Gossip) and comm.apart:
        return RecomputedStatistics(comm.model, comm.ranks, recipe=recipe, train=train, micro_batch=micro_batch)
    return RunningStatistics(comm.model, comm.ranks)
