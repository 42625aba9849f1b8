"""From a recipe to the objects that run it."""

import inspect
import random
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import RecipeError, UserError, unknown
from bigbatch.core.methods import COMMS, OPTIMIZERS
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.layers.ghost_batch_norm import convert_batch_norm
from bigbatch.layers.split_batch_norm import convert_split_batch_norm
from bigbatch.optim.group_table import GroupTable, describe_groups
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.micro_batch import fastest_micro_batch
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.data.stream_reader import seed_of_order
from bigbatch.train.setup.lstm_precision import cpu_computes_bfloat16, keep_lstms_in_float32
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices); other workers than the first have other streams."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_model(task: Task, recipe: Recipe, device: torch.device = torch.device("cpu")) -> nn.Module:  # noqa: B008
    """The task's model with the recipe's options, precision and normalisation groups.

    Raises:
        RecipeError: If an option is unknown, or the model has batch norm and the recipe does not say over how many samples.
        UserError: If nothing of the model is trained.
    """
    parameters = inspect.signature(task.model).parameters
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    for name in recipe.model:
        if name not in known and not takes_any:
            raise RecipeError(f"task {task.name}: " + unknown("model option", name, known))
    model = task.model(**recipe.model)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"task {task.name}: the model has no parameter with requires_grad = True: there is nothing to train")
    norms, ghost_batch = batch_norms(model), recipe.batch.ghost_batch
    if norms and ghost_batch is None:
        raise RecipeError(
            f"the model normalises over the batch ({', '.join(list(norms)[:3])}{', ...' if len(norms) > 3 else ''}) and the recipe does "
            f"not say over how many samples: set batch.ghost_batch to the batch that it was tuned at (say {recipe.batch.global_batch}), "
            "or to 'global'"
        )
    if norms:
        convert_batch_norm(model, ghost_batch if isinstance(ghost_batch, int) else None)
    if recipe.adversarial is not None:
        convert_split_batch_norm(model)
    if recipe.precision == "bfloat16" and device.type == "cpu" and not cpu_computes_bfloat16():
        keep_lstms_in_float32(model)
    return model.to(device, DTYPES[recipe.precision])


def build_comm(model: nn.Module, recipe: Recipe, ranks: Ranks) -> Comm:
    """How the workers go together; one alone needs nothing, but for an outer optimizer."""
    if ranks.world_size == 1 and not recipe.comm.applies_to_one_worker:
        return Comm(model, ranks)
    comm: Comm = COMMS[recipe.comm.kind].build(recipe.comm, model, ranks, recipe)
    return comm


def build_optimizer(model: nn.Module, recipe: Recipe, comm: Comm | None = None) -> Optimizer:
    """The recipe's optimizer at its peak rate."""
    alike = type(comm) is AllReduce and comm.ranks.world_size > 1  # gradients, so that workers can share the work of a step
    group = (comm.ranks.group or dist.group.WORLD) if comm is not None and alike else None
    optimizer: Optimizer = OPTIMIZERS[recipe.optimizer.name].build(recipe.optimizer, model, group)
    return optimizer


def group_table(model: nn.Module, recipe: Recipe) -> GroupTable:
    """The groups that the recipe's optimizer makes of a model's parameters."""
    o = recipe.optimizer
    return describe_groups(model, kind=o.groups_by, overrides=o.groups)


def describe_parameter_groups(model: nn.Module, recipe: Recipe, *, title: str, quiet: bool) -> list[dict[str, Any]]:
    """The groups for the record, one entry for each group and reason; Muon's are also said on standard error, unless quiet."""
    parts = list(group_table(model, recipe).summary())
    if recipe.optimizer.groups_by == "muon" and not quiet:
        for part in parts:
            print(f"{title}: {part.group} updates {part.names} ({part.why})", file=sys.stderr)
    return [part._asdict() for part in parts]


def choose_micro_batch(task: Task, recipe: Recipe, model: nn.Module, train: Any, ranks: Ranks) -> int:
    """The recipe's micro-batch, or the fastest one on the first worker where it says "auto"."""
    return int(ranks.run_on_rank_0(lambda: str(_choose_micro_batch(task, recipe, model, train, ranks))))


def _choose_micro_batch(task: Task, recipe: Recipe, model: nn.Module, train: Any, ranks: Ranks) -> int:
    batch = recipe.batch
    if isinstance(batch.micro_batch, int):
        return batch.micro_batch
    if batch.ghost_batch == "global":
        return batch.global_batch

    def forward_backward(copied: nn.Module, size: int) -> None:
        index = sample_indices(seed_of_order(train, recipe.seed), recipe.num_train_samples, 0, size)
        pieces = load_micro_batches(train, [index], device=ranks.device, dtype=DTYPES[recipe.precision])
        copied.zero_grad()
        passes = (Pass(inputs, targets, num_samples=size) for inputs, targets in pieces)
        accumulate_gradients(copied, task, passes, divisor=size, precision=recipe.precision, device=ranks.device)

    key = f"{task.name} {sorted(recipe.model.items())} {recipe.precision} ghost {batch.ghost_batch}"
    largest = max(-(-batch.global_batch // ranks.world_size), batch.ghost_batch or 1)
    settings: dict[str, Any] = {"ghost_batch": batch.ghost_batch, "key": key, "device": ranks.device}
    return fastest_micro_batch(forward_backward, model, global_batch=largest, **settings)
