"""What a worker reads: its share of every update from where the run stands, cut into forward passes."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.train.data.augmentation import Views
from bigbatch.train.data.label_skew import classes_of, label_shard
from bigbatch.train.data.loader import MicroBatch, load_micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import index_batches, sample_indices
from bigbatch.train.data.shares import IDLE_SAMPLES, Work
from bigbatch.train.data.stream_reader import seed_of_order


def open_stream(
    recipe: Recipe, train: Any, clock: Clock, updates: Iterable[int], ranks: Ranks, work: Callable[[int], Work]
) -> Iterator[MicroBatch]:
    """Every micro-batch of this worker from `clock` on.

    Args:
        recipe: Of the run.
        train: The training set.
        clock: Where the run stands.
        updates: Samples of the updates to come; read ahead of need by a DataLoader. Open another stream when they change.
        ranks: The workers, and the device where the micro-batches are wanted.
        work: What this worker does for an update of so many samples.
    """
    own: Tensor | None = None  # samples that only this worker has
    if recipe.comm.label_skew and ranks.world_size > 1:
        own = label_shard(classes_of(train), ranks.rank, ranks.world_size, skew=recipe.comm.label_skew, seed=recipe.seed)

    seed = seed_of_order(train, recipe.seed)
    views = Views(recipe.augmentation, recipe, train) if recipe.augmentation is not None else None
    starts: deque[int] = deque()  # number of the first sample of each micro-batch that was begun

    def batches() -> Iterator[Tensor]:
        start = clock.samples
        for num_samples in updates:
            share, sizes, idle = work(num_samples)
            starts.extend(list(itertools.accumulate([0] * idle + sizes[idle:], initial=start + share.start))[:-1])
            yield from [sample_indices(seed, recipe.num_train_samples, start, IDLE_SAMPLES)] * idle
            if own is None:
                yield from index_batches(seed, recipe.num_train_samples, start + share.start, iter(sizes[idle:]))
            else:  # the batch is fixed: so many own samples in each update before
                seen = start // recipe.batch.global_batch * work(recipe.batch.global_batch).share.num_samples
                yield from (own[index] for index in index_batches(recipe.seed, len(own), seen, iter(sizes[idle:])))
            start += num_samples

    for inputs, targets in load_micro_batches(train, batches(), device=ranks.device, dtype=DTYPES[recipe.precision]):
        start = starts.popleft()
        yield (inputs if views is None else views.of(inputs, start)), targets


def idle_batch(recipe: Recipe, train: Any, device: torch.device) -> MicroBatch:
    """A micro-batch for a pass that weighs nothing."""
    return next(load_micro_batches(train, [torch.arange(IDLE_SAMPLES)], device=device, dtype=DTYPES[recipe.precision]))
