"""Gradients made smaller before they are exchanged: half precision and PowerSGD from torch, and what every compressor answers.

A compressor is what DistributedDataParallel calls for each bucket of gradients in place of its own all-reduce. Its answer is the mean
over workers. What compression leaves out is remembered and added to the next gradient (error feedback), by every worker for itself: it
belongs into checkpoints.
"""

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
from bigbatch.core.devices import CPU
from bigbatch.core.methods import COMPRESSIONS
from bigbatch.recipe.base import Count
from bigbatch.recipe.sections import CompressionSection


class Compressor:
    """No compression: the mean as it is."""

    one_bucket = False
    """Whether all gradients must go in one bucket."""

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the exchange of a bucket.

        Returns:
            The mean over all workers, as it was compressed.
        """
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """What this worker remembers."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Take up the memories of the workers that saved.

        Where there are now fewer or more, each takes those whose number leaves its own when divided by the new number; the sum of all
        memories over the number of workers, which is what is still owed to the weights, stays.
        """


class HalfPrecision(Compressor):
    """float16, or bfloat16 where the backend can add it (NCCL; gloo can't).

    Args:
        dtype: torch.float16 or torch.bfloat16.
        device: Of the gradients, which decides the backend.

    Raises:
        UserError: If the backend can't.
    """

    def __init__(self, dtype: torch.dtype = torch.float16, *, device: torch.device = CPU) -> None:
        if dtype == torch.bfloat16 and dist.is_initialized() and (backend := backend_of(device)) == "gloo":
            raise UserError(f"compression bf16 with {backend}: can't add bfloat16; choose fp16")
        self._hook = default_hooks.bf16_compress_hook if dtype == torch.bfloat16 else default_hooks.fp16_compress_hook

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """Halve, add up, widen."""
        return self._hook(None, bucket)  # type: ignore[arg-type]


class PowerSGD(Compressor):
    """Low-rank approximation with error feedback (Vogels et al. 2019, arXiv:1905.13727): torch's implementation.

    Args:
        rank: Of the approximation of each matrix; gradients of one dimension are sent whole.
        start_updates: Updates before compression begins, at least 2: the first gradients are the largest.
        seed: Of the first guess, the same on every worker.
    """

    one_bucket = True  # with several, torch's callback waits inside another and hangs

    def __init__(self, rank: int = 4, *, start_updates: int = 10, seed: int = 0) -> None:
        self._state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=max(start_updates, 2), random_seed=seed,
            orthogonalization_epsilon=1e-8,
        )  # fmt: skip

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """Two thin matrices for each gradient."""
        return powerSGD_hook.powerSGD_hook(self._state, bucket)

    def state_dict(self) -> dict[str, Any]:
        """The step, the errors and the warm starts."""
        s = self._state
        return {"iter": s.iter, "errors": dict(s.error_dict), "p": dict(s.p_memory_dict), "q": dict(s.q_memory_dict)}

    def load_state_dicts(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Step and warm starts are the same on all workers, errors are each one's own."""
        s, first = self._state, states[0]
        if not first:
            return
        s.iter, s.p_memory_dict, s.q_memory_dict = first["iter"], dict(first["p"]), dict(first["q"])
        s.error_dict = redistribute_errors([state["errors"] for state in states], rank, world_size)


def redistribute_errors(memories: list[dict[int, Tensor]], rank: int, world_size: int) -> dict[int, Tensor]:
    """One worker's part of the error memories of the workers that saved, by bucket.

    >>> three = [{0: torch.tensor([1.0])}, {0: torch.tensor([2.0])}, {0: torch.tensor([3.0])}]
    >>> redistribute_errors(three, 0, 2), redistribute_errors(three, 1, 2)  # mean owed: 2 = (8/3 + 4/3) / 2
    ({0: tensor([2.6667])}, {0: tensor([1.3333])})
    """
    mine = memories[rank::world_size]
    if len(memories) == world_size:
        return dict(mine[0])
    scale = world_size / len(memories)
    return {bucket: scale * torch.stack([m[bucket] for m in mine]).sum(0) for bucket in (mine[0] if mine else {})}


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
