r"""Top-k: each rank sends its k largest gradients and keeps the rest as error feedback (torch has no such hook).

Paper:   Stich, Cordonnier, Jaggi 2018, Sparsified SGD with Memory, arXiv:1809.07599, Algorithm 1.
Formula: for each bucket of gradients, on rank i of W, with error e_i (initially 0),
             p_i <- g_i + e_i
             c_i  = p_i where |p_i| is among the k largest, else 0
             e_i <- p_i - c_i
             g    = (1/W) sum_i c_i
Units:   k is a fraction of the elements of a bucket, at least one.
Differs: e accumulates gradients, not steps (the paper's e is eta times ours), so a change of the learning rate applies to old and new
         gradients alike. The top k are taken per bucket, not of the whole gradient. They are sent as 4-byte indices and values of the
         gradients' type.
"""

from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from bigbatch.comm.compression.compressor import Compressor, redistribute_errors
from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.core.methods import COMPRESSIONS
from bigbatch.core.paper import Paper
from bigbatch.recipe.sections import CompressionSection

PAPER = Paper(
    method="Top-k compression with error feedback",
    title="Sparsified SGD with Memory",
    authors="Stich, Cordonnier, Jaggi",
    year=2018,
    arxiv="1809.07599",
    where="Algorithm 1",
    study="studies/compression",
)


def num_sent(num_elements: int, share: float) -> int:
    """How many elements of a bucket are sent, k.

    >>> num_sent(1000, 0.01), num_sent(10, 0.01)
    (10, 1)
    """
    return max(1, round(share * num_elements))


def top_k_indices(vector: Tensor, share: float) -> Tensor:
    """Indices of the elements that are sent, shape (k,), int64.

    >>> top_k_indices(torch.tensor([0.1, -3.0, 2.0, 0.5]), 0.5).tolist()
    [1, 2]
    """
    return torch.topk(vector.abs(), num_sent(vector.numel(), share), sorted=True).indices


class TopK(Compressor):
    """Top-k compression with error feedback; see the module's docstring for the rule.

    Args:
        share: Fraction of the elements that are sent, in (0, 1].

    Raises:
        UserError: If the share is out of range.
    """

    def __init__(self, share: float = 0.01) -> None:
        check_fraction("share", share)
        check_positive("share", share)
        self.share = share
        self._errors: dict[int, Tensor] = {}

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """All-gather indices and values."""
        gradient: Tensor = bucket.buffer()
        world_size = dist.get_world_size()
        error = self._errors.get(bucket.index())
        vector = gradient + error if error is not None and error.shape == gradient.shape else gradient.clone()
        index = top_k_indices(vector, self.share)
        values = vector[index]
        vector[index] = 0
        self._errors[bucket.index()] = vector
        indices = [torch.empty(len(index), dtype=torch.int32, device=index.device) for _ in range(world_size)]
        sent = [torch.empty_like(values) for _ in range(world_size)]
        works = [dist.all_gather(indices, index.int(), async_op=True), dist.all_gather(sent, values, async_op=True)]

        def add_up(_: Future[Any]) -> Tensor:
            works[0].wait()
            gradient.zero_()
            for i, v in zip(indices, sent, strict=True):  # in the order of ranks: the same sum on every rank
                gradient.index_add_(0, i.long(), v, alpha=1 / world_size)
            return gradient

        future: Future[Tensor] = works[1].get_future().then(add_up)
        return future

    def state_dict(self) -> dict[str, dict[int, Tensor]]:
        """The compression errors, by bucket."""
        return {"errors": dict(self._errors)}

    def load_state_dicts(self, states: list[dict[str, dict[int, Tensor]]], rank: int, world_size: int) -> None:
        """Load this rank's errors."""
        if states[0]:
            self._errors = redistribute_errors([state["errors"] for state in states], rank, world_size)

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:
        """(W - 1) times indices of 4 bytes and values, along a ring."""
        return (world_size - 1.0) * num_sent(num_elements, self.share) * (4 + element_size)


class TopKSection(CompressionSection):
    """The largest gradients are exchanged, with error feedback."""

    kind: Literal["top_k"] = "top_k"
    share: Annotated[float, Field(gt=0, le=1)] = 0.01


@COMPRESSIONS.register("top_k", TopKSection)
def build(c: TopKSection, *_: Any) -> TopK:
    """The recipe's compressor."""
    return TopK(c.share)
