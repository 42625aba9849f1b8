"""Training data that lies with the workers, by label: the hard case of decentralised training.

Of the samples, a share is sorted by label and cut into consecutive parts, one a worker; the others are dealt out at random (Hsieh et al.
2020, The Non-IID Data Quagmire of Decentralized Machine Learning, arXiv:1910.00189, section 3). A worker then goes through its own part
again and again, in an order of its own for each pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from bigbatch.core.checks import RecipeError
from bigbatch.train.data.stream_reader import is_stream


def label_shard(targets: Tensor, rank: int, world_size: int, *, skew: float, seed: int = 0) -> Tensor:
    """Indices of one worker's samples, ascending.

    Args:
        targets: Class of each sample, shape (n,).
        rank: Of the worker.
        world_size: Number of workers; their shards are disjoint and together hold every sample.
        skew: Share of the samples that is dealt out by label, in [0, 1].
        seed: Of the dealing.

    >>> [label_shard(torch.tensor([1, 0, 1, 0, 0, 1]), rank, 2, skew=1.0).tolist() for rank in range(2)]
    [[1, 3, 4], [0, 2, 5]]
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    num_skewed = round(skew * len(targets))
    skewed, others = order[:num_skewed], order[num_skewed:]
    skewed = skewed[torch.argsort(targets[skewed], stable=True)]
    parts = [_part(skewed, rank, world_size), _part(others, world_size - 1 - rank, world_size)]  # so that sizes differ by one at most
    return torch.cat(parts).sort().values


def classes_of(dataset: Dataset[Any]) -> Tensor:
    """The class of every sample.

    Raises:
        RecipeError: If targets are not classes.
    """
    if isinstance(dataset, TensorDataset):
        targets = dataset.tensors[-1] if len(dataset.tensors) == 2 else torch.zeros(0, 0)
    elif is_stream(dataset):
        raise RecipeError("comm.label_skew: the training set is a stream, of which no worker can have a part; leave label_skew out")
    else:
        try:
            targets = torch.as_tensor([int(dataset[i][1]) for i in range(len(dataset))])  # type: ignore[arg-type]
        except (LookupError, TypeError, ValueError, RuntimeError):  # items that are no pairs, or targets that are no numbers
            targets = torch.zeros(0, 0)
    if targets.ndim != 1 or targets.is_floating_point():
        raise RecipeError("comm.label_skew: the task's targets are no classes, one whole number a sample; leave label_skew out")
    return targets


def _part(indices: Tensor, rank: int, world_size: int) -> Tensor:
    return indices[len(indices) * rank // world_size : len(indices) * (rank + 1) // world_size]
