"""How many samples an update has over all processes, in the loops of others, whose processes may have unlike numbers of them."""

import torch
import torch.distributed as dist


def samples_of_all(own: int, device: torch.device) -> int:
    """The sum of every process's own number; each calls it at the same time, with a tensor's place that its backend can send from.

    Of one process it is its own. A GPU is waited for.

    >>> samples_of_all(3, torch.device("cpu"))
    3
    """
    if not dist.is_available() or not dist.is_initialized():
        return own
    total = torch.tensor(own, device=device)
    dist.all_reduce(total)
    return int(total)
