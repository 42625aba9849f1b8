"""Which samples an update sees: one permutation per epoch, drawn from (seed, epoch) alone.

The order is a pure function of the position, so a resumed run, a changed batch or another number of workers never re-draws it.
An update that reaches the end of an epoch goes on into the next one: every update is full except the last of the run.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


@functools.lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, num_samples: int) -> Tensor:
    """Order of the training samples in one epoch, shape (num_samples,), int64.

    >>> sorted(epoch_permutation(0, 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    stream = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(int(stream) >> 1))


def sample_indices(seed: int | None, num_train_samples: int, start: int, count: int) -> Tensor:
    """Training samples number `start` to `start + count` of the run, shape (count,); in the data's own order with `seed` None.

    >>> together = sample_indices(0, 5, 0, 12)
    >>> bool((together == torch.cat([sample_indices(0, 5, 0, 4), sample_indices(0, 5, 4, 8)])).all())
    True
    """
    if count < 0:
        raise ValueError(f"count = {count}: must not be negative")
    parts = []
    while count:
        epoch, offset = divmod(start, num_train_samples)
        if seed is None:
            part = torch.arange(offset, min(offset + count, num_train_samples))
        else:
            part = epoch_permutation(seed, epoch, num_train_samples)[offset : offset + count]
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def index_batches(seed: int | None, num_train_samples: int, start: int, sizes: Iterator[int]) -> Iterator[Tensor]:
    """Consecutive index tensors of the given sizes, from sample number `start` of the run."""
    for size in sizes:
        yield sample_indices(seed, num_train_samples, start, size)
        start += size
