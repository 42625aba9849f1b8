"""The mean over the samples of all workers, with one answer on each: an error of one is an error of all."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bigbatch.core.checks import Elsewhere, NotFinite, UserError
from bigbatch.curvature.products.operator import all_finite


class Share(NamedTuple):
    """What one worker found in its own samples."""

    total: Tensor  # a sum over them, the same shape on every worker; used up
    samples: int
    connected: bool = True  # whether their loss depends on the parameters at all
    alike: Mapping[str, int] = {}


class Mean(NamedTuple):
    """Over all samples of all workers, bit for bit the same on each."""

    value: Tensor
    samples: int


def mean_over_ranks(work: Callable[[], Share], group: dist.ProcessGroup | None, device: torch.device) -> Mean:
    """Do this worker's share, and divide the sum of all by the samples of all.

    Args:
        work: Does the share; called once. Talks to no other worker.
        group: The workers, each of which calls this; None for this one alone.
        device: Of the totals.

    Raises:
        Elsewhere: If the work of another raised.
        UserError: If there are no samples, no loss depends on the parameters, or what must be alike is not.

    >>> mean_over_ranks(lambda: Share(torch.tensor(6.0), 3), None, torch.device("cpu"))
    Mean(value=tensor(2.), samples=3)
    """
    if group is None:
        share = work()
        return _mean(share.total, share.samples, share.connected)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise UserError("group: this process is not in it; call only where it is")
    raised: Exception | None = None
    share = Share(torch.zeros(()), 0)
    try:
        share = work()
    except Exception as error:  # the others must know before it goes on
        raised = error
    told = torch.zeros(world, 8, dtype=torch.int64, device=device)
    told[rank, : 3 + len(share.alike)] = torch.tensor([raised is not None, share.samples, share.connected, *share.alike.values()])
    dist.all_reduce(told, group=group)
    failed, samples, connected, *alike = told.T.tolist()
    if raised is not None:
        raise raised
    if any(failed):
        raise Elsewhere(f"worker {failed.index(1)} of the group could not do its share: its own message says why")
    for what, sums in zip(share.alike, alike, strict=False):
        if len(set(sums)) > 1:
            raise UserError(f"{what} are not the same on all workers of the group; broadcast them, or draw them from one seed")
    if sum(samples):
        dist.all_reduce(share.total, group=group)
    return _mean(share.total, sum(samples), any(connected))


def _mean(total: Tensor, samples: int, connected: bool) -> Mean:
    if not samples:
        raise UserError("batches: none; give at least one batch of at least one sample")
    if not connected:
        raise UserError("loss: has no graph to the chosen parameters; compute it from the outputs, not detached nor under no_grad")
    mean = total.div_(samples)
    if not all_finite(mean):
        raise NotFinite("a derivative of the loss is not finite, though the loss is: look for roots, powers and logarithms at zero")
    return Mean(mean, samples)
