"""Fully sharded: parameters, gradients and optimizer state of a model that does not fit are spread over the workers (FSDP2).

The step is that of all-reduce. torch's `fully_shard` gathers the weights of a layer just before they are needed, and hands each worker
its part of the mean gradient.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.comm.rendezvous.backends import backend_of
from bigbatch.core.checks import UserError
from bigbatch.core.methods import COMMS
from bigbatch.core.optimizer_state import load_optimizer_state
from bigbatch.recipe.sections import CommSection

if TYPE_CHECKING:
    from bigbatch.comm.shard_files import ShardWriter


class FullyShard(Comm):
    """FSDP2 on a mesh of all workers; make the optimizer afterwards.

    Args:
        model: Changed in place: its parameters become DTensors. Each child that holds parameters is gathered by itself.
        ranks: The workers.

    Attributes:
        mesh: Of all workers; None for one alone.
        writer: Writes what each worker holds, while training goes on; None for one alone.

    Raises:
        UserError: If workers share a GPU.
    """

    equal_num_passes = True
    mesh: DeviceMesh | None = None
    writer: "ShardWriter | None" = None

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        super().__init__(model, ranks)
        if ranks.world_size > 1:
            if ranks.device.type != "cpu" and backend_of(ranks.device, ranks.group) == "gloo":
                raise UserError(
                    "fully_shard: workers share a GPU, where spreading a model over them saves no memory; start one for each GPU, or give "
                    "--device cpu"
                )
            from bigbatch.comm.shard_files import ShardWriter  # its import of torch.distributed.checkpoint takes a while

            self.writer = ShardWriter(ranks)
            self.mesh = mesh = init_device_mesh(ranks.device.type, (ranks.world_size,), mesh_dim_names=("workers",))
            for child in model.children():
                if any(p.requires_grad for p in child.parameters()):
                    fully_shard(child, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def divisor(self, num_samples: int, own_samples: int) -> float:
        """The update's samples, less what torch divides by on its own: the number of workers."""
        return super().divisor(num_samples, own_samples) / self.ranks.world_size

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Add up gradients over workers in the last pass only."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Gathered from all workers."""
        return _map(self.model.state_dict(), _whole), _map(optimizer.state_dict(), _whole)

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """Each worker takes its part, or is given it as DTensors."""
        now = self.model.state_dict()
        self.model.load_state_dict({name: _as(value, now[name]) if name in now else value for name, value in model_state.items()})
        params = [p for group in optimizer.param_groups for p in group["params"]]
        numbers = [n for group in optimizer_state["param_groups"] for n in group["params"]]
        state = {
            n: {name: _as(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value for name, value in of_one.items()}
            for n, p in zip(numbers, params, strict=True)
            if (of_one := optimizer_state["state"].get(n)) is not None
        }
        load_optimizer_state(optimizer, {**optimizer_state, "state": state})


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _as(value: Tensor, like: Tensor) -> Tensor:
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _map(tree: Any, change: Any) -> Any:
    return torch.utils._pytree.tree_map(change, tree)


class FullyShardSection(CommSection):
    """As all-reduce, with weights and optimizer state spread over the workers."""

    kind: Literal["fully_shard"] = "fully_shard"


@COMMS.register("fully_shard", FullyShardSection)
def build(_: FullyShardSection, model: nn.Module, ranks: Ranks, __: Any) -> FullyShard:
    """How the recipe's workers go together."""
    return FullyShard(model, ranks)
