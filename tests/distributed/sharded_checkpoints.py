"""One rank of test_sharded_checkpoint.py: saves models and optimizers that are spread over the ranks, or loads what others saved.

python sharded_checkpoints.py save|load FOLDER
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn

from bigbatch import Recipe
from bigbatch.comm import shard_files
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.clock import Clock
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.train.setup.build import build_comm, build_optimizer
from bigbatch.train.state.checkpoint import Progress, load_checkpoint, save_checkpoint

OPTIMIZERS = ["sgd", "adam", "adamw", "lars", "lamb", "sgdp", "adamp", "muon", "soap_muon"]
CLOCK = Clock(samples=96, updates=3)


def recipe_of(name):
    rates = {"optimizer.lr": 0.01} | ({"optimizer.adam_lr": 0.01} if "muon" in name else {})
    return Recipe.named("digits/mlp").replace({"optimizer.name": name, **rates, "comm.kind": "fully_shard"})


def net(seed=0):
    """Ragged over two and four ranks, some of which hold nothing; convolutions and running statistics."""
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    return nn.Sequential(first, nn.Linear(96, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 1))


def built(name, ranks, seed=0):
    model, recipe = net(seed), recipe_of(name)
    comm = build_comm(model, recipe, ranks)
    return recipe, comm, build_optimizer(model, recipe, comm)


def train(comm, optimizer, updates=3):
    for update in range(updates):
        torch.manual_seed(100 + update)  # the same samples on every rank
        comm.forward(torch.randn(8, 1, 6, 6)).square().mean().backward()
        set_lr(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def same(mine, theirs):
    """Equal bits, through dictionaries and lists."""
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and mine.shape == theirs.shape and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(same(a, b) for a, b in zip(mine, theirs, strict=True))
    return mine == theirs


def save_all(folder, ranks):
    """Each optimizer's checkpoint, and beside it the same states in one piece."""
    for name in OPTIMIZERS:
        recipe, comm, optimizer = built(name, ranks)
        train(comm, optimizer)
        path = folder / f"{name}.pt" if ranks.is_rank_0 else None
        save_checkpoint(path, recipe=recipe, comm=comm, optimizer=optimizer, progress=Progress(CLOCK, micro_batch=8))
        whole = copy.deepcopy(comm.full_state_dicts(optimizer))
        train(comm, optimizer, updates=2)  # while it is written: it holds the states of before
        if ranks.world_size > 1:
            comm.writer.wait()
            comm.writer.close()
        if ranks.is_rank_0:
            torch.save(whole, folder / f"{name}-whole.pt")


def load_all(folder, ranks):
    for name in OPTIMIZERS:
        recipe, comm, optimizer = built(name, ranks, seed=1)
        assert load_checkpoint(folder / f"{name}.pt", recipe=recipe, comm=comm, optimizer=optimizer).clock == CLOCK
        model_state, optimizer_state = torch.load(folder / f"{name}-whole.pt", weights_only=True)
        assert optimizer_state["state"], "no state of the optimizer"
        found = comm.full_state_dicts(optimizer)
        assert same(found[0], model_state), name
        assert same(found[1]["state"], optimizer_state["state"]), name
        for mine, theirs in zip(found[1]["param_groups"], optimizer_state["param_groups"], strict=True):
            assert same({key: mine[key] for key in theirs}, theirs), name  # torch adds what a group lacks
        train(comm, optimizer, updates=1)
        if ranks.is_rank_0:
            print(name, "equal", flush=True)


def main():
    torch.set_num_threads(1)
    shard_files.FILE_BYTES = 500.0  # several files a worker
    what, folder = sys.argv[1], Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    {"save": save_all, "load": load_all}[what](folder, Ranks(rank, world) if world > 1 else SINGLE_PROCESS)
    leave()


if __name__ == "__main__":
    main()
