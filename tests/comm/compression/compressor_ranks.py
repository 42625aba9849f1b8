"""One rank of test_quantized.py and test_sparse_loco.py: the real exchange against a literal transcription of the paper in one process."""

import os
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.comm.buckets import Bucket
from tests.distributed.ranks import leave
from tests.reference.double_squeeze import double_squeeze
from tests.reference.sparse_loco import sparse_loco
from torch import nn

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression.quantized import Quantized
from bigbatch.comm.compression.sparse_loco import SparseLoCo
from bigbatch.comm.ranks import Ranks

SIZES = (50, 1, 37)
"""Of buckets: neither blocks nor chunks divide them."""
KINDS = {
    "int8": (lambda: Quantized("int8", block=8), lambda rounds: double_squeeze(rounds, 127, 8)),
    "int4": (lambda: Quantized("int4", block=5), lambda rounds: double_squeeze(rounds, 7, 5)),
    "sparse_loco": (lambda: SparseLoCo(chunk=16, top=3, decay=0.9), lambda rounds: sparse_loco(rounds, 16, 3, 0.9)),
}


def vectors(update, index, world):
    """Of all ranks."""
    return list(np.random.default_rng(1000 * update + index).standard_normal((world, SIZES[index])))


def exchange(compressor, update, rank, world, dtype=torch.float64):
    """All buckets of an update, started before the first is waited for, and overwritten at once."""
    futures = []
    for index in range(len(SIZES)):
        buffer = torch.tensor(vectors(update, index, world)[rank], dtype=dtype)
        futures.append(compressor.comm_hook(Bucket(buffer, index)))
        buffer.fill_(1e9)
    return [future.wait() for future in futures]


def everyones(tensor):
    out = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(out, tensor)
    return out


def check_reference(make, reference, rank, world, updates=100):
    compressor = make()
    expected = [reference([vectors(update, index, world) for update in range(updates)]) for index in range(len(SIZES))]
    for update in range(updates):
        for index, got in enumerate(exchange(compressor, update, rank, world)):
            want = torch.from_numpy(next(expected[index]))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12, msg=lambda text, u=update: f"update {u}: {text}")


def check_equal_bits(make, rank, world):
    """On all ranks, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        compressor = make()
        for update in range(5):
            for got in exchange(compressor, update, rank, world, dtype):
                assert got.dtype == dtype
                assert all(torch.equal(got, other) for other in everyones(got))
    assert compressor.state_dict()["errors"][0].dtype == torch.float32


def check_nothing_is_lost(make, rank, world, updates=20):
    """What all received, and the errors that are left, are the sum of the inputs; the errors decay in neither."""
    compressor = make()
    if isinstance(compressor, SparseLoCo):
        compressor.decay = 1.0
    received = [sum(each) for each in zip(*(exchange(compressor, update, rank, world) for update in range(updates)), strict=True)]
    state = compressor.state_dict()
    for index, size in enumerate(SIZES):
        total = torch.from_numpy(sum(sum(vectors(update, index, world)) for update in range(updates))) / world
        left = sum(everyones(state["errors"][index])) / world
        if "owner_errors" in state:
            left = left + torch.cat(everyones(state["owner_errors"][index]))[:size]
        torch.testing.assert_close(received[index] + left, total, rtol=0, atol=1e-12)
        assert left.abs().max() > 0


def check_resume(make, rank, world):
    """Stopped half-way: the same bits."""
    straight, stopped = make(), make()
    for update in range(6):
        if update == 3:
            states = [None] * world
            dist.all_gather_object(states, stopped.state_dict())
            stopped = make()
            stopped.load_state_dicts(states, rank, world)
        for a, b in zip(exchange(straight, update, rank, world), exchange(stopped, update, rank, world), strict=True):
            assert torch.equal(a, b)


def recorded(background, world):
    """Bytes that each collective sends to other ranks, as they are sent."""
    sent, all_to_all, all_gather = [], background.all_to_all, background.all_gather

    def recorded_all_to_all(rows):
        sent.append(rows.nbytes // world * (world - 1))
        return all_to_all(rows)

    def recorded_all_gather(row):
        sent.append(row.nbytes * (world - 1))
        return all_gather(row)

    background.all_to_all, background.all_gather = recorded_all_to_all, recorded_all_gather
    return sent


def check_bytes(make, rank, world):
    """What goes to the collectives is what `sent_bytes` says; what a rank sends to itself does not count."""
    for size in (1, 37, 1000):
        compressor = make()
        sent = recorded(compressor._background, world)
        compressor.comm_hook(Bucket(torch.randn(size))).wait()
        assert sum(sent) == compressor.sent_bytes(size, 4, world)


def check_failures(make, rank, world):
    """A value that is not finite on one rank is not hidden on any; what the thread raises comes out of `wait`."""
    for bad in (float("nan"), float("inf")):
        compressor, buffer = make(), torch.ones(40)
        buffer[3] = bad if rank == 1 else 1.0
        assert not compressor.comm_hook(Bucket(buffer)).wait().isfinite().all()
    compressor = make()
    compressor._background.all_gather = lambda row: (_ for _ in ()).throw(ValueError("no way through"))
    with pytest.raises(RuntimeError, match="ValueError: no way through"):
        compressor.comm_hook(Bucket(torch.ones(3))).wait()
    compressor.state_dict()  # does not wait forever, nor raise


def check_overlap(make, rank, world):
    """Rank 0 starts first, and goes on meanwhile with a collective of the default group: in the same thread this would hang."""
    compressor = make()
    if rank == 0:
        future = compressor.comm_hook(Bucket(torch.ones(40)))
        assert not future.done()
    dist.barrier()
    if rank != 0:
        future = compressor.comm_hook(Bucket(torch.ones(40)))
    assert future.wait().isfinite().all()


def check_training(make, rank, world):
    """In DistributedDataParallel, with several buckets: the same weights on all ranks, near those of an exchange without compression."""
    ends = []
    for compressor in (None, make()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
        comm = AllReduce(model, Ranks(rank, world), compressor=compressor, bucket_mb=0.01)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for update in range(30):
            random = torch.Generator().manual_seed(update)
            x, y = torch.randn(world, 8, 6, generator=random)[rank], torch.randn(world, 8, 4, generator=random)[rank]
            loss = (comm.forward(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert all(torch.equal(ends[-1], other) for other in everyones(ends[-1]))
    assert len(compressor.state_dict()["errors"]) > 1, "several buckets"
    torch.manual_seed(0)
    start = torch.cat([p.detach().flatten() for p in nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 64), nn.Linear(64, 4)).parameters()])
    far, apart = (ends[0] - start).norm(), (ends[1] - ends[0]).norm()
    assert 0 < apart < 0.7 * far, (float(apart), float(far))


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    for kind in sys.argv[1:]:
        make, reference = KINDS[kind]
        check_reference(make, reference, rank, world)
        checks = check_equal_bits, check_nothing_is_lost, check_resume, check_bytes, check_failures, check_overlap, check_training
        for check in checks:
            torch.manual_seed(0)
            check(make, rank, world)
    leave()


if __name__ == "__main__":
    main()
