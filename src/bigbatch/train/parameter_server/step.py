"""One optimizer step of a parameter server, with the gradient, or the mean of where workers went, in `p.grad`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.parameter_server.async_sgd import equivalent_settings
from bigbatch.comm.parameter_server.section import ParameterServerSection
from bigbatch.core.clock import Clock
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.train.setup.build import build_optimizer

Apply = Callable[[Clock, float, int], float]


def build_server_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer; with local steps, which are taken by that, the outer one."""
    c = recipe.comm
    assert isinstance(c, ParameterServerSection)
    if not c.has_outer_optimizer:
        return build_optimizer(model, recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=c.outer_lr, momentum=c.outer_momentum, nesterov=c.nesterov and c.outer_momentum > 0)


def build_step(recipe: Recipe, model: nn.Module, optimizer: Optimizer) -> Apply:
    """The step: a function of the clock before it, its damping and its number of gradients, which returns the learning rate.

    Parameters without a gradient, those of other servers, do not change. The rate of an outer optimizer follows no schedule.
    """
    c, schedule = recipe.comm, schedule_of(recipe)
    assert isinstance(c, ParameterServerSection)
    if c.has_outer_optimizer:
        return partial(_outer_step, optimizer)
    decays = [group["weight_decay"] for group in optimizer.param_groups]

    def apply(clock: Clock, damping: float, num_gradients: int) -> float:
        def of_group(decay: float) -> Any:
            lr, clip = schedule(clock) * damping, recipe.optimizer.clip_norm
            return equivalent_settings(lr, decay, clip, num_gradients=num_gradients, reduction=c.reduction)

        if (clip := of_group(0.0).clip_norm) is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        set_lr(optimizer, of_group(0.0).lr)
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = of_group(decay).weight_decay
        optimizer.step()
        return float(optimizer.param_groups[0]["lr"])

    return apply


def _outer_step(optimizer: Optimizer, clock: Clock, damping: float, num_gradients: int) -> float:  # noqa: ARG001
    set_lr(optimizer, damping)
    optimizer.step()
    return float(optimizer.param_groups[0]["lr"])


@torch.no_grad()
def add_running_statistics(model: nn.Module, extras: list[list[Tensor]]) -> None:
    """Add the batch norm statistics of work items, each computed from zero (see `batch_norm_buffers`), to the running ones.

    For each normalisation group of a work item the running statistics decay by (1 - a); then the item's are added: as in a single process.
    """
    norms = [m for m in batch_norms(model).values() if m.track_running_stats]
    for buffers in extras:
        remaining = iter(buffers)
        for m in norms:
            mean, var, count = next(remaining), next(remaining), next(remaining)
            assert m.running_mean is not None
            assert m.running_var is not None
            assert m.num_batches_tracked is not None
            decay = (1 - (m.momentum or 0.0)) ** int(count)
            m.running_mean.mul_(decay).add_(mean.to(m.running_mean.device))
            m.running_var.mul_(decay).add_(var.to(m.running_var.device))
            m.num_batches_tracked += int(count)
