"""From sample indices to micro-batches on the device: straight from memory, or through a DataLoader."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bigbatch.core.alignment import aligned

MicroBatch = tuple[Tensor, Tensor]  # inputs (n, ...), targets (n, ...)


def feed(dataset: Dataset[Any], batches: Iterable[Tensor], *, device: torch.device, dtype: torch.dtype) -> Iterator[MicroBatch]:
    """Micro-batches of a data set.

    Args:
        dataset: A `TensorDataset` of (inputs, targets) is gathered from memory. Any other map-style data set goes through a
            DataLoader with worker processes, prefetch and, for a GPU, pinned memory.
        batches: Index tensors, one per micro-batch; read ahead of need by a DataLoader.
        device: Where the micro-batches are wanted.
        dtype: Of floating-point inputs.

    Yields:
        (inputs, targets) in the order of `batches`; inputs begin at 64 bytes, see `bigbatch.core.alignment`.
    """
    if isinstance(dataset, TensorDataset):
        inputs, targets = dataset.tensors
        for index in batches:
            yield _move(inputs[index], device, dtype), targets[index].to(device, non_blocking=True)
    else:
        loader = DataLoader(
            dataset,
            batch_sampler=_Lists(batches),
            num_workers=max(1, (os.cpu_count() or 1) // 2),
            pin_memory=device.type == "cuda",
            prefetch_factor=2,
            multiprocessing_context="spawn" if device.type == "cuda" else None,
        )
        for batch_inputs, batch_targets in loader:
            yield _move(batch_inputs, device, dtype), batch_targets.to(device, non_blocking=True)


def _move(inputs: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return aligned(inputs.to(device, dtype if inputs.is_floating_point() else None, non_blocking=True))


class _Lists:
    """A batch sampler over index tensors."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.batches)
