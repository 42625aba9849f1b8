"""Several servers in a run: what the first does to see and save the whole, and the loop of the others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.shard_server import Parts, ShardServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks, process_group
from bigbatch.core.optimizer_state import load_optimizer_state
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.parameter_server.step import build_step
from bigbatch.train.parameter_server.worker import batch_norm_buffers, describe_job, ignore_stop_signals
from bigbatch.train.setup.build import build_model, build_optimizer, seed_everything
from bigbatch.train.state.result import Result


class ShardedParameters(Comm):
    """The first of several servers: its model and optimizer are whole whenever they are looked at or saved.

    Args:
        model: Whole; between two looks, only the first server's part of it is up to date.
        ranks: Of the first server.
        parts: Its hold on the others.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, shards: Parts) -> None:
        super().__init__(model, ranks)
        self.shards = shards
        self.traffic: Counter[str] = Counter()  # of the others

    @contextmanager
    def averaged_weights(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """With the others' weights as they are now."""
        self._gather()
        yield

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """One model, and one optimizer that has everybody's state."""
        others = self._gather()
        state = optimizer.state_dict()
        own = {key: value for key, value in state["state"].items() if key in _state_keys(optimizer, self.shards.own_parameters)}
        for other in others:
            own |= other["optimizer"]
        return self.model.state_dict(), {**state, "state": own}

    def begin(self, optimizer: Optimizer, queue: WorkQueue) -> None:
        """Give the others what they need of the model and the optimizer as they are now."""
        state, states = optimizer.state_dict()["state"], []
        for share in self.shards.shard_indices[1:]:
            part = [self.shards.parameters[i] for i in share]
            keys = _state_keys(optimizer, part)
            states.append({"weights": [p.detach() for p in part], "optimizer": {k: v for k, v in state.items() if k in keys}})
        self.shards.load(states, queue)

    @torch.no_grad()
    def _gather(self) -> list[Any]:
        states = self.shards.states()
        self.traffic = sum((Counter(state["traffic"]) for state in states), Counter())
        for share, state in zip(self.shards.shard_indices[1:], states, strict=True):
            for i, weights in zip(share, state["weights"], strict=True):
                self.shards.parameters[i].copy_(weights)
        return states


def run_shard_server(task: Task, recipe: Recipe, role: ProcessRole, *, device: str | torch.device | None = None) -> Result:
    """The loop of a further server.

    Returns:
        A result without scores: the first server has them.

    Raises:
        UserError: If its address can't be used.
        LostWorkers: If it missed something.
    """
    ignore_stop_signals()
    with process_group(device=device) as ranks:
        seed_everything(recipe.seed)
        model = build_model(task, recipe, ranks.device)
        optimizer = build_optimizer(model, recipe)
        apply = build_step(recipe, model, optimizer)
        facts: dict[str, Any] = {"token": role.token, "extras": batch_norm_buffers(model), "job": describe_job(recipe)}
        server = ShardServer(list(model.parameters()), role.rank, role.server_addresses, **facts)
        keys = _state_keys(optimizer, server.parameters)
        try:
            while (order := server.next()) is not None:
                if order.kind == "load":
                    with torch.no_grad():
                        for p, weights in zip(server.parameters, order.state["weights"], strict=True):
                            p.copy_(weights)
                    load_optimizer_state(optimizer, {**optimizer.state_dict(), "state": order.state["optimizer"]})
                elif order.kind == "apply":
                    apply(order.clock, order.damping, order.num_gradients)
                    server.publish()
                else:
                    state = {key: value for key, value in optimizer.state_dict()["state"].items() if key in keys}
                    weights = [p.detach() for p in server.parameters]
                    server.send_state({"weights": weights, "optimizer": state, "traffic": server.traffic})
        finally:
            server.close()
        return Result(task.name, updates=0, samples=0)


def _state_keys(optimizer: Optimizer, parameters: list[Any]) -> set[int]:
    """By what numbers an optimizer's state dict knows some parameters."""
    wanted = {id(p) for p in parameters}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return {key for key, p in enumerate(every) if id(p) in wanted}
