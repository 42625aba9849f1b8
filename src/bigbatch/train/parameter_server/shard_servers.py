"""Several servers in a run: how the first one gathers all shards to evaluate and save, and the training loop of the others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.shard_client import ShardClient
from bigbatch.comm.parameter_server.shard_server import ShardServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks, process_group
from bigbatch.core.tensors.optimizer_state import load_optimizer_state
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.parameter_server.step import build_server_optimizer, build_step
from bigbatch.train.parameter_server.worker import batch_norm_buffers, describe_job, ignore_stop_signals
from bigbatch.train.setup.build import build_model, seed_everything
from bigbatch.train.state.result import Result


class ShardedParameters(Comm):
    """Gathers the parameter shards on the first server whenever the model is evaluated or saved.

    Args:
        model: The full model; in between, only the first server's shard is up to date.
        ranks: Of the first server.
        shards: Client of the other servers.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, shards: ShardClient) -> None:
        super().__init__(model, ranks)
        self.shards = shards
        self.traffic: Counter[str] = Counter()  # of the other servers

    @contextmanager
    def averaged_weights(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """Context with the current weights of all servers."""
        self._gather()
        yield

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of the full model, and of an optimizer with the state of all servers."""
        others = self._gather()
        state = optimizer.state_dict()
        own = {key: value for key, value in state["state"].items() if key in _state_keys(optimizer, self.shards.own_parameters)}
        for other in others:
            own |= other["optimizer"]
        return self.model.state_dict(), {**state, "state": own}

    def begin(self, optimizer: Optimizer, queue: WorkQueue) -> None:
        """Send each other server its shard of the model and of the optimizer's state."""
        state, states = optimizer.state_dict()["state"], []
        for indices in self.shards.shard_indices[1:]:
            shard = [self.shards.parameters[i] for i in indices]
            keys = _state_keys(optimizer, shard)
            states.append({"weights": [p.detach() for p in shard], "optimizer": {k: v for k, v in state.items() if k in keys}})
        self.shards.load(states, queue)

    @torch.no_grad()
    def _gather(self) -> list[Any]:
        states = self.shards.states()
        self.traffic = sum((Counter(state["traffic"]) for state in states), Counter())
        for indices, state in zip(self.shards.shard_indices[1:], states, strict=True):
            for i, weights in zip(indices, state["weights"], strict=True):
                self.shards.parameters[i].copy_(weights)
        return states


def run_shard_server(task: Task, recipe: Recipe, role: ProcessRole, *, device: str | torch.device | None = None) -> Result:
    """Run the training loop of a further server.

    Returns:
        A result without scores, which the first server has.

    Raises:
        UserError: If it cannot listen on its address.
        LostWorkers: If it missed a command.
    """
    ignore_stop_signals()
    with process_group(device=device) as ranks:
        seed_everything(recipe.seed)
        model = build_model(task, recipe, ranks.device)
        optimizer = build_server_optimizer(model, recipe)
        apply = build_step(recipe, model, optimizer)
        settings: dict[str, Any] = {"token": role.token, "extras": batch_norm_buffers(model), "job": describe_job(recipe)}
        server = ShardServer(list(model.parameters()), role.rank, role.server_addresses, **settings)
        keys = _state_keys(optimizer, server.parameters)
        try:
            while (command := server.next()) is not None:
                if command.kind == "load":
                    with torch.no_grad():
                        for p, weights in zip(server.parameters, command.state["weights"], strict=True):
                            p.copy_(weights)
                    load_optimizer_state(optimizer, {**optimizer.state_dict(), "state": command.state["optimizer"]})
                elif command.kind == "apply":
                    apply(command.clock, command.damping, command.num_gradients)
                    server.publish()
                else:
                    state = {key: value for key, value in optimizer.state_dict()["state"].items() if key in keys}
                    weights = [p.detach() for p in server.parameters]
                    server.send_state({"weights": weights, "optimizer": state, "traffic": server.traffic})
        finally:
            server.close()
        return Result(task.name, updates=0, samples=0)


def _state_keys(optimizer: Optimizer, parameters: list[Any]) -> set[int]:
    """Keys of some parameters in the optimizer's state dict."""
    wanted = {id(p) for p in parameters}
    parameters_in_order = [p for group in optimizer.param_groups for p in group["params"]]
    return {key for key, p in enumerate(parameters_in_order) if id(p) in wanted}
