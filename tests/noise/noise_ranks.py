"""One rank of test_ranks.py: the same twelve samples in the same six groups, whoever has them, give the same signal and noise."""

import os

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression.compressor import HalfPrecision
from bigbatch.comm.compression.top_k import TopK
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.reader import ALL, Pending, Reader

SIZES = [1, 3, 2, 2, 1, 3, 4, 8]  # of the groups


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def measured(make, ranks, *, along=False):
    """Two updates, this rank's groups, and a step between."""
    model = net()
    comm = make(model)
    monitor = NoiseScaleMonitor(
        model, population=100, parts=layers_of(model), along=along, process_group="all" if ranks.world_size > 1 else None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, last = (len(SIZES) * r // ranks.world_size for r in (ranks.rank, ranks.rank + 1))
    for update in range(2):
        random = torch.Generator().manual_seed(update)
        groups = torch.randn(sum(SIZES), 10, generator=random).double().split(SIZES)[first:last]
        own = sum(len(x) for x in groups)
        divisor = comm.divisor(sum(SIZES), own)
        for number, x in enumerate(groups):
            with comm.sync_context(last=number == len(groups) - 1):
                ((comm.forward(x[:, :6]) - x[:, 6:]).square().sum() / divisor).backward()
            monitor.micro_batch(len(x), divisor=divisor)
        monitor.update()
        optimizer.step()
        optimizer.zero_grad()
    return monitor.flush(), monitor.estimate()


def check_own(ranks):
    """Compressed to next to nothing, or never exchanged: the mean over ranks of what each measures alone with its own groups."""

    def alone(rank, make=Comm, own=False):
        model = net()
        comm = make(model)
        monitor = NoiseScaleMonitor(model, population=100, own=own, process_group="all" if own else None)
        if isinstance(comm, AllReduce):
            comm.observe(monitor.observe)
        first, last = (len(SIZES) * r // ranks.world_size for r in (rank, rank + 1))
        groups = torch.randn(sum(SIZES), 10, generator=torch.Generator().manual_seed(0)).double().split(SIZES)[first:last]
        divisor = comm.divisor(sum(SIZES), sum(len(x) for x in groups))
        for number, x in enumerate(groups):
            with comm.sync_context(last=number == len(groups) - 1):
                ((comm.forward(x[:, :6]) - x[:, 6:]).square().sum() / divisor).backward()
            monitor.micro_batch(len(x), divisor=divisor)
        monitor.update()
        return monitor.flush()[0].parts["all"]

    each = [alone(rank) for rank in range(ranks.world_size)]
    expected = [sum(values) / len(values) for values in zip(*each, strict=True)]
    ways = (
        lambda model: AllReduce(model, ranks, compressor=TopK(0.01)),
        lambda model: LocalSGD(model, ranks, period=4),
        lambda model: LocalSGD(model, ranks, period=4, start_updates=10),  # still all-reduce
    )
    for make in ways:
        assert tuple(alone(ranks.rank, make, own=True)) == pytest.approx(expected, rel=1e-9)


def check_reading():
    """An update's values have the same bits, however many are read at once: that many, the clock decides."""
    readers = {own: Reader({ALL: range(6)}, 100.0, torch.device("cpu"), dist.group.WORLD, sharded=False, own=own) for own in (False, True)}
    updates = []
    for update in range(30):
        chance = torch.Generator().manual_seed(100 * update + dist.get_rank())
        *passes, whole = ([*row.unbind()] for row in torch.rand(5, 6, generator=chance))
        updates.append(Pending(passes, [32.0] * 4, whole, torch.rand(3, generator=chance), (8.0, 4.0, 1.0, 1 / 8), 1.0))
    for own, reader in readers.items():
        alone = [measured for update in updates for measured in reader.read([update])]
        assert reader.read(updates) == alone, own


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    alone, estimate = measured(Comm, Ranks(), along=True)
    ways = {
        "all-reduce": (lambda model: AllReduce(model, ranks), 1e-9),
        "half precision": (lambda model: AllReduce(model, ranks, compressor=HalfPrecision()), 2e-2),
        "sharded": (lambda model: FullyShard(model, ranks), 1e-9),
    }
    for name, (make, tolerance) in ways.items():
        got, together = measured(make, ranks, along=name != "sharded")
        for mine, theirs in zip(got, alone, strict=True):
            for part, scale in theirs.parts.items():
                assert tuple(mine.parts[part]) == pytest.approx(tuple(scale), rel=tolerance), (name, part)
            if name != "sharded":
                assert mine.noise_along == pytest.approx(theirs.noise_along, rel=tolerance, nan_ok=True)
        assert together.noise_scale == pytest.approx(estimate.noise_scale, rel=10 * tolerance), name
    check_own(ranks)
    check_reading()
    if rank == 0:
        print("all agree")
    leave()


if __name__ == "__main__":
    main()
