"""Fully sharded data parallelism (FSDP2): parameters, gradients and optimizer state are sharded over the ranks.

The step is that of all-reduce. torch's `fully_shard` all-gathers the weights of a layer just before they are used, and reduce-scatters
the gradients.
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
from bigbatch.core.tensors.optimizer_state import load_optimizer_state
from bigbatch.recipe.sections import CommSection

if TYPE_CHECKING:
    from bigbatch.comm.shard_files import ShardWriter


class FullyShard(Comm):
    """FSDP2 on a mesh of all ranks; make the optimizer afterwards.

    Args:
        model: Changed in place: its parameters become DTensors. Each child module with parameters is a unit of its own.
        ranks: The workers.

    Attributes:
        mesh: Mesh of all ranks; None in a single process.
        writer: Writes each rank's shards while training continues; None in a single process.

    Raises:
        UserError: If ranks share a GPU.
    """

    equal_num_passes = True
    mesh: DeviceMesh | None = None
    writer: "ShardWriter | None" = None

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        super().__init__(model, ranks)
        if ranks.world_size > 1:
            if ranks.device.type != "cpu" and backend_of(ranks.device, ranks.group) == "gloo":
                raise UserError(
                    "fully_shard: workers share a GPU, so sharding the model over them saves no memory; start one worker per GPU, or use "
                    "--device cpu"
                )
            from bigbatch.comm.shard_files import ShardWriter  # imports torch.distributed.checkpoint, which is slow

            self.writer = ShardWriter(ranks)
            self.mesh = mesh = init_device_mesh(ranks.device.type, (ranks.world_size,), mesh_dim_names=("workers",))
            for child in model.children():
                if any(p.requires_grad for p in child.parameters()):
                    fully_shard(child, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def divisor(self, global_batch: float, local_batch: float) -> float:
        """The global batch over the world size, by which torch divides as well."""
        return super().divisor(global_batch, local_batch) / self.ranks.world_size

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Synchronise gradients in the last pass only."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of full tensors, gathered from all ranks."""
        return _map(self.model.state_dict(), _full_tensor), _map(optimizer.state_dict(), _full_tensor)

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """Shard full tensors over the ranks; DTensors are loaded as they are."""
        current = self.model.state_dict()
        self.model.load_state_dict(
            {name: _shard_like(value, current[name]) if name in current else value for name, value in model_state.items()}
        )
        params = [p for group in optimizer.param_groups for p in group["params"]]
        ids = [n for group in optimizer_state["param_groups"] for n in group["params"]]
        state = {
            n: {
                name: _shard_like(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
                for name, value in of_one.items()
            }
            for n, p in zip(ids, params, strict=True)
            if (of_one := optimizer_state["state"].get(n)) is not None
        }
        load_optimizer_state(optimizer, {**optimizer_state, "state": state})


def _full_tensor(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _shard_like(value: Tensor, like: Tensor) -> Tensor:
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
