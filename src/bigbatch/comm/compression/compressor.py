"""Gradient compression: half precision and PowerSGD from torch, and the interface of a compressor.

A compressor is a communication hook of DistributedDataParallel: it replaces the all-reduce of each gradient bucket, and returns the mean
over ranks. With error feedback, each rank adds its own compression error to its next gradient; the errors are part of a checkpoint.
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future

from bigbatch.comm.rendezvous.backends import backend_of
from bigbatch.core.checks import UserError
from bigbatch.core.hardware.devices import CPU
from bigbatch.core.methods import COMPRESSIONS
from bigbatch.recipe.base import Count
from bigbatch.recipe.sections import CompressionSection


class Compressor:
    """No compression: a plain all-reduce."""

    one_bucket = False
    """Whether all gradients must be in one bucket."""

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the communication of a bucket.

        Returns:
            The mean over all ranks of the compressed gradients.
        """
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """State of this rank, such as its compression errors."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Load the states of all ranks that saved.

        With another world size, rank r takes the errors of the old ranks r, r + world_size, ... The sum of all errors over the world size,
        which is what the weights have yet to receive, stays the same.
        """

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:
        """Bytes that one rank sends for one mean, by the algorithm's own count, without what the transport adds.

        Args:
            num_elements: Of the vector.
            element_size: Bytes of an element before compression.
            world_size: W, the number of ranks.

        >>> Compressor().sent_bytes(1000, 4, 4)  # a ring sends 2 (W - 1) / W of the vector
        6000.0
        """
        return 2 * (world_size - 1) / world_size * num_elements * element_size


class HalfPrecision(Compressor):
    """float16, or bfloat16 with a backend that can reduce it (NCCL, not gloo).

    Args:
        dtype: torch.float16 or torch.bfloat16.
        device: Device of the gradients, which determines the backend.

    Raises:
        UserError: If the backend cannot reduce bfloat16.
    """

    def __init__(self, dtype: torch.dtype = torch.float16, *, device: torch.device = CPU) -> None:
        if dtype == torch.bfloat16 and dist.is_initialized() and (backend := backend_of(device)) == "gloo":
            raise UserError(f"compression bf16 with {backend}: {backend} cannot reduce bfloat16; use fp16")
        self._hook = default_hooks.bf16_compress_hook if dtype == torch.bfloat16 else default_hooks.fp16_compress_hook

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """All-reduce in half precision."""
        return self._hook(None, bucket)  # type: ignore[arg-type]

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:  # noqa: ARG002
        """Of an all-reduce with 2 bytes an element."""
        return super().sent_bytes(num_elements, 2, world_size)


class PowerSGD(Compressor):
    """Low-rank approximation with error feedback (Vogels et al. 2019, arXiv:1905.13727): torch's implementation.

    Args:
        rank: Rank of the approximation of each matrix; one-dimensional gradients are not compressed.
        start_updates: Updates before compression starts, at least 2: the first gradients are the largest.
        seed: Seed of the first factors, the same on every rank.
    """

    one_bucket = True  # with several buckets, torch's callback waits inside another callback and hangs

    def __init__(self, rank: int = 4, *, start_updates: int = 10, seed: int = 0) -> None:
        self._state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=max(start_updates, 2), random_seed=seed,
            orthogonalization_epsilon=1e-8,
        )  # fmt: skip

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """All-reduce two low-rank factors of each gradient."""
        return powerSGD_hook.powerSGD_hook(self._state, bucket)

    def state_dict(self) -> dict[str, Any]:
        """The step count, the errors and the factors of the last step (warm start)."""
        s = self._state
        return {"iter": s.iter, "errors": dict(s.error_dict), "p": dict(s.p_memory_dict), "q": dict(s.q_memory_dict)}

    def load_state_dicts(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Load the step count and the factors, which are the same on all ranks, and this rank's errors."""
        s, first = self._state, states[0]
        if not first:
            return
        s.iter, s.p_memory_dict, s.q_memory_dict = first["iter"], dict(first["p"]), dict(first["q"])
        s.error_dict = redistribute_errors([state["errors"] for state in states], rank, world_size)

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:  # noqa: ARG002
        """NaN: torch's hook does not tell, and it depends on the shapes of the matrices, not on the number of elements alone."""
        return math.nan


def redistribute_errors(errors: list[dict[int, Tensor]], rank: int, world_size: int) -> dict[int, Tensor]:
    """The compression errors of one rank, by bucket, from those of all ranks that saved.

    >>> three = [{0: torch.tensor([1.0])}, {0: torch.tensor([2.0])}, {0: torch.tensor([3.0])}]
    >>> redistribute_errors(three, 0, 2), redistribute_errors(three, 1, 2)  # the mean error stays: 2 = (8/3 + 4/3) / 2
    ({0: tensor([2.6667])}, {0: tensor([1.3333])})
    """
    mine = errors[rank::world_size]
    if len(errors) == world_size:
        return dict(mine[0])
    scale = world_size / len(errors)
    return {bucket: scale * torch.stack([e[bucket] for e in mine]).sum(0) for bucket in (mine[0] if mine else {})}


class HalfPrecisionSection(CompressionSection):
    """Gradients are exchanged in float16, or in bfloat16 where the backend can."""

    kind: Literal["fp16", "bf16"] = "fp16"


@COMPRESSIONS.register("fp16", HalfPrecisionSection)
@COMPRESSIONS.register("bf16", HalfPrecisionSection)
def build(c: HalfPrecisionSection, _: int, device: torch.device) -> HalfPrecision:
    """The recipe's compressor."""
    return HalfPrecision(torch.bfloat16 if c.kind == "bf16" else torch.float16, device=device)


class PowerSGDSection(CompressionSection):
    """Gradients are exchanged as matrices of low rank, with error feedback."""

    kind: Literal["powersgd"] = "powersgd"
    rank: Count = 4
    start_updates: Annotated[int, Field(ge=2)] = 10


@COMPRESSIONS.register("powersgd", PowerSGDSection)
def build_powersgd(c: PowerSGDSection, seed: int, _: torch.device) -> PowerSGD:
    """The recipe's compressor."""
    return PowerSGD(c.rank, start_updates=c.start_updates, seed=seed)
