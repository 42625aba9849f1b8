"""One update of a parameter server: the gradients that it combines."""

from typing import NamedTuple

from torch import Tensor

from bigbatch.comm.parameter_server.work_queue import WorkItem


class Update(NamedTuple):
    """The gradients of one update."""

    work_items: list[WorkItem]  # ordered by their first sample
    weights: list[float]  # of the gradients
    staleness: list[int]
    damping: float  # factor of the learning rate
    num_samples: int
    sum_loss: float
    extras: list[list[Tensor]]  # of each work item, the additional tensors of its worker
