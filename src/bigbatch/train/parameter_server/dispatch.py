"""Runs with a parameter server: which process runs which loop, and which recipes are not supported.

Every process makes the same call of `fit`; `BIGBATCH_ROLE` (see `bigbatch.comm.parameter_server.process_role`) makes it a server (`server`,
`shard_servers`) or a worker (`worker`). A run with asynchronous updates is not reproducible bit for bit: the order of the gradients depends
on the speed of the processes. A synchronous one without backup workers is, with any number of workers that come and go. With local steps
it is too, if the number that they were asked for stays and their optimizer has no state; each worker's state is lost with it, and a resumed
run begins with fresh ones.
"""

from pathlib import Path

import torch

from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.section import ParameterServerSection
from bigbatch.core.checks import CheckpointError, RecipeError, UserError
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import has_weights
from bigbatch.tasks.task import Task
from bigbatch.train.run import Options
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.result import Result


def take_part(task: Task, recipe: Recipe, role: ProcessRole, options: Options) -> Result:
    """What this process does in a run with a parameter server.

    Raises:
        UserError: If the recipe or an option does not go with one, or as `fit`.
    """
    if has_weights(task):
        raise UserError(
            f"task {task.name}: its weights with a parameter server: no worker knows the sum of the weights of an update, by which its "
            'losses are divided; set comm.kind = "all_reduce", or leave weights() out and take each sample\'s mean'
        )
    check_parameter_server_recipe(recipe, role.num_workers, measure_noise=options.measure_noise, measure_distance=options.measure_distance)
    if not role.is_server:
        from bigbatch.train.parameter_server.worker import run_worker

        return run_worker(task, recipe, role, device=options.device, compile=options.compile)
    if role.rank > 0:
        from bigbatch.train.parameter_server.shard_servers import run_shard_server

        return run_shard_server(task, recipe, role, device=options.device)
    from bigbatch.train.parameter_server.server import run_server

    return run_server(task, recipe, role, options)


def check_parameter_server_recipe(
    recipe: Recipe, num_workers: int, *, measure_noise: bool | str = False, measure_distance: bool = False
) -> None:
    """Refuse recipes and options that a parameter server does not support, before the run starts.

    Raises:
        UserError: With a remedy.
    """
    c = recipe.comm
    if not isinstance(c, ParameterServerSection):
        raise RecipeError(f"comm.kind = {c.kind!r} in a run with a parameter server: must be 'parameter_server'; set it")
    if recipe.batch.rule is not None:
        raise RecipeError(
            "batch.rule with a parameter server: work is assigned before a rule could choose its batch; leave it out, or use all_reduce"
        )
    if measure_noise:
        raise UserError("measure_noise with a parameter server: workers compute at different weights; measure a run with all_reduce")
    if measure_distance:
        raise UserError("measure_distance with a parameter server: is not recorded there; measure a run with all_reduce")
    if c.reduction == "sum" and recipe.optimizer.name != "sgd":
        raise RecipeError(
            f'comm.reduction = "sum" with {recipe.optimizer.name}: the rate that matches a sum is known for sgd only; use "mean"'
        )
    if c.servers > 1 and recipe.optimizer.clip_norm is not None and not c.has_outer_optimizer:
        raise RecipeError(
            f"optimizer.clip_norm with comm.servers = {c.servers}: the norm is of the whole gradient, which no server has; use one server"
        )
    if c.backup_workers >= num_workers:
        raise RecipeError(
            f"comm.backup_workers = {c.backup_workers} of {num_workers} workers: none would be left to wait for; lower it, or start more"
        )
    if c.has_outer_optimizer and recipe.batch.global_batch % num_workers:
        raise RecipeError(
            f"batch.global_batch = {recipe.batch.global_batch} of {num_workers} workers with local steps: each update of a worker needs "
            f"equally many samples; choose a multiple of {num_workers}"
        )


def refuse_local_steps_alone(recipe: Recipe) -> None:
    """Without a server there is no outer optimizer, and an ordinary run would be another one.

    Raises:
        RecipeError: With the launcher to use.
    """
    c = recipe.comm
    if isinstance(c, ParameterServerSection) and c.has_outer_optimizer:
        raise RecipeError(
            f"comm.period = {c.period}, comm.outer_lr = {c.outer_lr:g}, comm.outer_momentum = {c.outer_momentum:g} without a parameter "
            "server: none could take the outer steps; use bigbatch train --workers"
        )


def refuse_gaps(recipe: Recipe, out: str | Path | None) -> None:
    """A run that was stopped with pieces missing in the middle can only be continued by a server."""
    path = Path(out) / "last.pt" if out is not None else None
    if recipe.comm.kind != "parameter_server" or path is None or not path.exists():
        return
    applied = read_checkpoint(path, torch.device("cpu"))["progress"][4].get("ledger", {}).get("applied", [])
    if len(applied) > 1 or (applied and applied[0][0] != 0):
        raise CheckpointError(f"{path}: samples were applied out of order, by a parameter server; continue it with --workers")
