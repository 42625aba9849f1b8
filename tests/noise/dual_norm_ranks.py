"""One rank of test_dual_norm_ranks.py: the same groups, whoever has them, give the same signal and noise in each norm."""

import os

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError
from bigbatch.noise.dual_norm_monitor import DualNormMonitor
from bigbatch.noise.monitor import layers_of

PASSES, SIZE = 8, 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def measured(make, ranks, norm):
    """Four updates, this rank's passes, and steps between."""
    model = net()
    comm = make(model)
    monitor = DualNormMonitor(
        model,
        norm=norm,
        every_updates=2,
        num_groups=PASSES // ranks.world_size,
        parts=layers_of(model),
        process_group="all" if ranks.world_size > 1 else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first, last = (PASSES * r // ranks.world_size for r in (ranks.rank, ranks.rank + 1))
    for update in range(4):
        random = torch.Generator().manual_seed(update)
        groups = torch.randn(PASSES * SIZE, 10, generator=random).double().split(SIZE)[first:last]
        divisor = comm.divisor(PASSES * SIZE, SIZE * len(groups))
        for number, x in enumerate(groups):
            with comm.sync_context(last=number == len(groups) - 1):
                ((comm.forward(x[:, :6]) - x[:, 6:]).square().sum() / divisor).backward()
            monitor.micro_batch(len(x), divisor=divisor)
        monitor.update()
        optimizer.step()
        optimizer.zero_grad()
    return monitor.flush()


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    for norm in ("l1", "nuclear", "euclidean"):
        alone, together = measured(Comm, Ranks(), norm)[3], measured(lambda model: AllReduce(model, ranks), ranks, norm)[3]
        for part, scale in alone.parts.items():
            assert scale.noise == scale.noise
            assert tuple(together.parts[part]) == pytest.approx(tuple(scale), rel=1e-9), (norm, part)
    model = net()
    FullyShard(model, ranks)
    with pytest.raises(UserError, match="a sharded model: no rank has the whole gradient"):
        DualNormMonitor(model, norm="l1")
    if rank == 0:
        print("all agree")
    leave()


if __name__ == "__main__":
    main()
