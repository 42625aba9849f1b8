"""Batches that must be the same at every pass: cut into micro-batches, and told apart by checksums."""

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import map_tensors, tensors_of
from bigbatch.curvature.products.checksum import checksum


class Piece(NamedTuple):
    """A micro-batch."""

    inputs: Any  # tensors of n samples each, in tuples, lists or dicts
    targets: Any
    samples: int  # n
    number: int  # of the piece, from 0
    batch: int  # of the batch that it is cut from, from 0


class FixedBatches:
    """An iterable of batches, held to be the same at every pass.

    A pass seeds torch's, Python's and NumPy's random states, each pass otherwise: if samples are drawn by them, that shows.

    Args:
        batches: Pairs of inputs and targets: tensors of equally many samples, also in tuples, lists or dicts. With the number of samples
            as a third part, tensors may have other lengths, and the batch is never cut.
        micro_batch: Samples of a piece; whole batches, if None.
        device: Where pieces go.

    Raises:
        UserError: If the batches can be read only once, or `micro_batch` is not positive.

    >>> batches = FixedBatches([(torch.arange(3.0), torch.zeros(3))], micro_batch=2)
    >>> [(p.inputs.tolist(), p.samples) for p in batches]
    [([0.0, 1.0], 2), ([2.0], 1)]
    """

    def __init__(self, batches: Iterable[Any], *, micro_batch: int | None = None, device: torch.device | None = None) -> None:
        if not isinstance(batches, Iterable):
            raise UserError(f"batches: a {type(batches).__name__} has no batches to read; give a list of (inputs, targets) or a DataLoader")
        if isinstance(batches, Iterator):
            raise UserError(f"batches: a {type(batches).__name__} can be read only once; give a list or a DataLoader")
        if micro_batch is not None and micro_batch < 1:
            raise UserError(f"micro_batch = {micro_batch}: must be at least one sample; leave it out for whole batches")
        self._batches, self._micro_batch, self._device = batches, micro_batch, device
        self._checksums: list[list[int]] | None = None
        self._num_passes = 0

    def __iter__(self) -> Iterator[Piece]:
        """One pass. Changes the random states, and raises UserError where it is not like the first."""
        self._num_passes += 1
        for seed in (torch.default_generator.manual_seed, random.seed, np.random.seed):
            seed(self._num_passes)
        seen: list[list[int]] = []
        number = 0
        for i, batch in enumerate(self._batches):
            tensors, samples, whole = _checked(batch, i)
            size = samples if whole else self._micro_batch or samples
            seen.append(torch.stack([checksum(t).cpu() for t in tensors]).tolist())
            if self._checksums is not None and seen[i:] != self._checksums[i : i + 1]:
                raise _changed(i)
            for start in range(0, samples, size):
                cut = slice(start, min(start + size, samples))
                inputs, targets = (cut_samples(part, slice(None) if whole else cut, self._device) for part in batch[:2])
                yield Piece(inputs, targets, cut.stop - start, number, i)
                number += 1
        if self._checksums is not None and len(seen) < len(self._checksums):
            raise _changed(len(seen))
        self._checksums = seen


def _checked(batch: Any, i: int) -> tuple[list[Tensor], int, bool]:
    """All tensors of a batch, how many samples it has, and whether it can't be cut."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise UserError(f"batch {i} is a {type(batch).__name__}: must be a pair; give a list of pairs (inputs, targets)")
    tensors = list(tensors_of(batch[:2]))
    counts = {len(t) if t.dim() else 0 for t in tensors}
    if len(batch) == 3:
        return tensors, batch[2], counts != {batch[2]}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"batch {i}: tensors of {sorted(counts)} samples; inputs and targets must have equally many, one at least")
    return tensors, counts.pop(), False


def _changed(i: int) -> UserError:
    return UserError(
        f"batches: batch {i} is not what it was at the first pass; turn off shuffling and augmentation, or give a list of batches"
    )


def cut_samples(value: Any, cut: slice, device: torch.device | None = None) -> Any:
    """The same value with every tensor in it cut and moved."""
    return map_tensors(lambda t: (t[cut] if t.dim() else t).detach().to(device), value)
