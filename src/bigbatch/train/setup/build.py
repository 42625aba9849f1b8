"""From a recipe to the objects that run it."""

import inspect
import random
import sys
from typing import Any, assert_never

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression import Compressor, HalfPrecision, PowerSGD
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.decentlam import DecentLaM
from bigbatch.comm.gossip.dmsgd import DmSGD
from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.local_sgd import LocalSGD
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.comm.top_k import TopK
from bigbatch.core.checks import RecipeError, unknown
from bigbatch.core.groups import param_groups
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.layers.ghost_batch_norm import convert_batch_norm
from bigbatch.layers.split_batch_norm import convert_split_batch_norm
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, GroupTable, Muon, describe_groups, muon_groups
from bigbatch.recipe import Recipe, sections
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import feed
from bigbatch.train.data.micro_batch import fastest_micro_batch
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.setup.lstm_precision import cpu_computes_bfloat16, keep_lstms_in_float32
from bigbatch.train.update.gradient_accumulation import accumulate_gradients

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Precision of a recipe to the type of the weights; bfloat16 is autocast over float32 weights."""


GOSSIP: dict[str, type[Gossip]] = {"d_psgd": DPSGD, "dmsgd": DmSGD, "decentlam": DecentLaM}


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
    """
    parameters = inspect.signature(task.model).parameters
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    for name in recipe.model:
        if name not in known and not takes_any:
            raise RecipeError(f"task {task.name}: " + unknown("model option", name, known))
    model = task.model(**recipe.model)
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
    """How the workers go together; one alone needs nothing."""
    if ranks.world_size == 1:
        return Comm(model, ranks)
    match recipe.comm:
        case sections.AllReduce() as c:
            partial = recipe.adversarial is not None
            return AllReduce(
                model, ranks, compressor=_compressor(c.compression, recipe.seed, ranks.device), bucket_mb=c.bucket_mb, partial=partial
            )
        case sections.LocalSGD() as c:
            return LocalSGD(
                model,
                ranks,
                period=c.period,
                start_updates=c.start_updates,
                momentum=c.momentum,
                group_size=c.group_size,
                group_period=c.group_period,
            )
        case sections.Gossip() as c:
            return GOSSIP[c.method](model, ranks, topology=topology(c.topology, ranks.world_size))
        case sections.FullyShard():
            return FullyShard(model, ranks)
        case sections.ParameterServer():
            raise RecipeError("comm.kind = 'parameter_server' under torchrun: has a launcher of its own; use bigbatch train --workers")
        case other:
            assert_never(other)


def _compressor(section: Any, seed: int, device: torch.device) -> Compressor | None:
    match section:
        case None:
            return None
        case sections.Float16(kind=kind):
            return HalfPrecision(torch.bfloat16 if kind == "bf16" else torch.float16, device=device)
        case sections.PowerSGD() as c:
            return PowerSGD(c.rank, start_updates=c.start_updates, seed=seed)
        case _:
            return TopK(section.share)


def build_optimizer(model: nn.Module, recipe: Recipe, comm: Comm | None = None) -> Optimizer:
    """The recipe's optimizer at its peak rate."""
    match recipe.optimizer:
        case sections.SGD() as o:
            return torch.optim.SGD(_groups(model, o), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)
        case sections.Adam() as o:
            return torch.optim.Adam(_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps)
        case sections.AdamW() as o:
            return torch.optim.AdamW(_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps)
        case sections.SGDP() as o:
            return SGDP(_groups(model, o), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, delta=o.delta, wd_ratio=o.wd_ratio)
        case sections.AdamP() as o:
            return AdamP(_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps, delta=o.delta, wd_ratio=o.wd_ratio)
        case sections.LARS() as o:
            return LARS(
                _groups(model, o),
                lr=o.lr,
                momentum=o.momentum,
                nesterov=o.nesterov,
                trust_coefficient=o.trust_coefficient,
                lr_in_momentum=o.lr_in_momentum,
            )
        case sections.LAMB() as o:
            return LAMB(_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps, bias_correction=o.bias_correction)
        case sections.Muon() as o:
            groups = muon_groups(model, lr=o.lr, adam_lr=o.adam_lr, weight_decay=o.weight_decay, overrides=o.groups)
            shared = comm.ranks.group or dist.group.WORLD if type(comm) is AllReduce and comm.ranks.world_size > 1 else None
            return Muon(groups, momentum=o.momentum, nesterov=o.nesterov, betas=o.betas, eps=o.eps, process_group=shared)
        case other:
            assert_never(other)


def _groups(model: nn.Module, o: Any) -> list[dict[str, Any]]:
    """One group for everything, unless norms and biases are treated apart."""
    adapt = getattr(o, "adapt_norms_and_biases", True)
    if adapt and (o.decay_norms_and_biases or not o.weight_decay) and not o.groups:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": o.weight_decay}]
    flags = {"decay_norms_and_biases": o.decay_norms_and_biases, "adapt_norms_and_biases": adapt}
    return param_groups(model, weight_decay=o.weight_decay, **flags, overrides=o.groups)


def group_table(model: nn.Module, recipe: Recipe) -> GroupTable:
    """The groups that the recipe's optimizer makes of a model's parameters."""
    o = recipe.optimizer
    return describe_groups(model, kind="muon" if isinstance(o, sections.Muon) else "decay", overrides=o.groups)


def told_groups(model: nn.Module, recipe: Recipe, *, title: str, quiet: bool) -> list[dict[str, Any]]:
    """The groups for the record, one entry for each group and reason; Muon's are also said on standard error, unless quiet."""
    parts = list(group_table(model, recipe).summary())
    if isinstance(recipe.optimizer, sections.Muon) and not quiet:
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
        index = sample_indices(recipe.seed, recipe.num_train_samples, 0, size)
        pieces = feed(train, [index], device=ranks.device, dtype=DTYPES[recipe.precision])
        copied.zero_grad()
        accumulate_gradients(copied, task, pieces, divisor=size, precision=recipe.precision, device=ranks.device)

    key = f"{task.name} {sorted(recipe.model.items())} {recipe.precision} ghost {batch.ghost_batch}"
    largest = max(-(-batch.global_batch // ranks.world_size), batch.ghost_batch or 1)
    settings: dict[str, Any] = {"ghost_batch": batch.ghost_batch, "key": key, "device": ranks.device}
    return fastest_micro_batch(forward_backward, model, global_batch=largest, **settings)
