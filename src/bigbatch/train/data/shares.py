"""Which samples of an update are whose: the same update, however many workers there are.

Shares are consecutive and differ by at most one normalisation group (one sample for a model without batch norm); groups are cut as if
one worker had them all, so that another number of workers changes nothing but who computes what.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from bigbatch.core.checks import RecipeError
from bigbatch.layers.ghost_batch_norm import ghost_groups
from bigbatch.train.data.micro_batch import micro_batches


class Share(NamedTuple):
    """A worker's part of an update."""

    start: int  # samples of the update before it
    num_samples: int
    groups_before: int = 0  # normalisation groups of the workers before
    groups_after: int = 0


def share_of(num_samples: int, rank: int, world_size: int, ghost_batch: int | Literal["global"] | None) -> Share:
    """The share of one worker.

    Args:
        num_samples: Samples in the update.
        rank: Of the worker.
        world_size: Number of workers.
        ghost_batch: Samples in one normalisation group, "global" for one group, None for a model without batch norm.

    >>> [share_of(10, rank, 4, None)[:2] for rank in range(4)]
    [(0, 2), (2, 3), (5, 2), (7, 3)]
    >>> [share_of(600, rank, 2, 128) for rank in range(2)]  # groups of 128, 128, 128, 128, 88
    [Share(start=0, num_samples=256, groups_before=0, groups_after=3), Share(start=256, num_samples=344, groups_before=2, groups_after=0)]
    """
    if ghost_batch is None:
        start, stop = num_samples * rank // world_size, num_samples * (rank + 1) // world_size
        return Share(start, stop - start)
    groups = [num_samples] if ghost_batch == "global" else ghost_groups(num_samples, ghost_batch)
    first, last = len(groups) * rank // world_size, len(groups) * (rank + 1) // world_size
    return Share(sum(groups[:first]), sum(groups[first:last]), first, len(groups) - last)


def check_shares(global_batch: int, world_size: int, ghost_batch: int | Literal["global"] | None) -> None:
    """Refuse a run in which some workers would never have anything to do.

    Raises:
        RecipeError: Naming the batch, the workers and the remedy.
    """
    if global_batch < world_size:
        raise RecipeError(
            f"{world_size} workers for a global_batch of {global_batch}: some would have no samples; start at most {global_batch} workers "
            "or raise the batch"
        )
    groups = 1 if ghost_batch == "global" else len(ghost_groups(global_batch, ghost_batch)) if ghost_batch is not None else world_size
    if groups < world_size:
        raise RecipeError(
            f"{world_size} workers for {groups} normalisation group{'s' * (groups > 1)} (ghost_batch = {ghost_batch}, global_batch = "
            f"{global_batch}): a group is never cut in two; start at most {groups} workers or lower ghost_batch"
        )


IDLE_SAMPLES = 2
"""Samples of an idle pass: batch norm needs two."""


class Work(NamedTuple):
    """What a worker does for one update."""

    share: Share
    sizes: list[int]  # of its forward passes, in order, idle ones first
    idle: int  # passes of IDLE_SAMPLES samples that weigh nothing


def work_of(
    num_samples: int,
    rank: int,
    world_size: int,
    *,
    micro_batch: int,
    ghost_batch: int | Literal["global"] | None,
    equal_num_passes: bool = False,
) -> Work:
    """A worker's share and how it is cut.

    A worker without samples makes an idle pass all the same: it must take part in the exchange of gradients.

    Args:
        num_samples: Samples in the update.
        rank: Of the worker.
        world_size: Number of workers.
        micro_batch: Most samples in one pass.
        ghost_batch: As in `share_of`.
        equal_num_passes: Whether all ranks must make the same number of passes, idle ones included.

    >>> work_of(5, 0, 1, micro_batch=2, ghost_batch=None).sizes
    [2, 2, 1]
    >>> work_of(2, 0, 3, micro_batch=2, ghost_batch=None)
    Work(share=Share(start=0, num_samples=0, groups_before=0, groups_after=0), sizes=[2], idle=1)
    """

    def sizes_of(share: Share) -> list[int]:
        return micro_batches(share.num_samples, micro_batch, ghost_batch) if share.num_samples else []

    shares = [share_of(num_samples, r, world_size, ghost_batch) for r in (range(world_size) if equal_num_passes else [rank])]
    most = max(1, *(len(sizes_of(share)) for share in shares))
    share = shares[rank] if equal_num_passes else shares[0]
    sizes = sizes_of(share)
    return Work(share, [IDLE_SAMPLES] * (most - len(sizes)) + sizes, most - len(sizes))


def partition(
    rank: int,
    world_size: int,
    *,
    micro_batch: int,
    ghost_batch: int | Literal["global"] | None,
    equal_num_passes: bool,
    num_groups: int | None = None,
) -> Callable[[int], Work]:
    """How a worker's share of any update is cut, as a function of the update's samples.

    Args:
        rank: As in `work_of`.
        world_size: As in `work_of`.
        micro_batch: As in `work_of`.
        ghost_batch: As in `work_of`.
        equal_num_passes: As in `work_of`.
        num_groups: Micro-batches that an update is cut into at least, over all workers; None: no bound.

    >>> partition(0, 1, micro_batch=8, ghost_batch=None, equal_num_passes=False, num_groups=4)(8).sizes
    [2, 2, 2, 2]
    """

    @lru_cache
    def work(num_samples: int) -> Work:
        most = micro_batch if num_groups is None else min(micro_batch, -(-num_samples // num_groups))
        return work_of(num_samples, rank, world_size, micro_batch=most, ghost_batch=ghost_batch, equal_num_passes=equal_num_passes)

    return work
