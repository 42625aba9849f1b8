"""One rank of test_comm.py: ways of going together, in a hand-written loop, each against what one process would do."""

import os

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn

from bigbatch import Recipe
from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression.compressor import HalfPrecision, PowerSGD
from bigbatch.comm.compression.quantized import Quantized
from bigbatch.comm.compression.sparse_loco import SparseLoCo
from bigbatch.comm.compression.top_k import TopK
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError
from bigbatch.core.tensors.sharding import local
from bigbatch.tasks import load_task
from bigbatch.train.measure.evaluate import evaluate

SAMPLES, UPDATES = 12, 6


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def data(update):
    random = torch.Generator().manual_seed(update)
    return torch.randn(SAMPLES, 6, generator=random).double(), torch.randn(SAMPLES, 4, generator=random).double()


def train(model, comm, optimizer, start, stop, *, first=0, last=UPDATES):
    """Updates on this worker's samples start to stop, in two passes."""
    for update in range(first, last):
        x, y = (t[start:stop] for t in data(update))
        for piece in (slice(0, 1), slice(1, None)):
            with comm.sync_context(last=piece.start == 1):
                loss = (comm.forward(x[piece]) - y[piece]).square().sum() / comm.divisor(SAMPLES, stop - start)
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        comm.after_step(optimizer, update + 1)


def sgd(model, momentum=0.9):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)


def observed(comm, observer):
    comm.observe(observer)
    return comm


def alone():
    from bigbatch.comm.protocol import Comm

    model = net()
    train(model, Comm(model), sgd(model), 0, SAMPLES)
    return [p.detach() for p in model.parameters()]


def close(model, expected, atol=1e-12):
    for p, q in zip(model.parameters(), expected, strict=True):
        p = p.detach()
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        torch.testing.assert_close(whole, q, rtol=0, atol=atol)


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    start, stop = SAMPLES * rank // world, SAMPLES * (rank + 1) // world
    expected = alone()

    def trained(make, momentum=0.9):
        model = net()
        comm = make(model)
        optimizer = sgd(model, momentum)
        train(model, comm, optimizer, start, stop)
        return model, comm, optimizer

    model, *_ = trained(lambda m: AllReduce(m, ranks))
    close(model, expected)

    seen = []
    observer = lambda own, mean: seen.append((own.clone(), mean.clone()))  # noqa: E731
    for compressor in (
        None,
        TopK(0.3),
        Quantized(),
        SparseLoCo(chunk=16, top=4),
    ):  # an observer sees what was measured here and what came back, compressed or not
        seen.clear()
        model, *_ = trained(lambda m, c=compressor: observed(AllReduce(m, ranks, compressor=c), observer))
        own, mean = seen[0]
        total = own.clone()
        dist.all_reduce(total)
        if compressor is None:
            close(model, expected)
            torch.testing.assert_close(mean, total / world)
            assert len(seen) == UPDATES, "one bucket, one exchange an update"

    model, *_ = trained(lambda m: AllReduce(m, ranks, compressor=TopK(1.0)))  # everything is sent
    close(model, expected)
    model, *_ = trained(lambda m: AllReduce(m, ranks, compressor=SparseLoCo(chunk=2, top=2)))  # two values, two magnitudes: everything
    close(model, expected, atol=1e-6)
    model, *_ = trained(lambda m: AllReduce(m, ranks, compressor=Quantized()))
    close(model, expected, atol=2e-2)
    model, *_ = trained(lambda m: AllReduce(m, ranks, compressor=HalfPrecision()))
    close(model, expected, atol=2e-3)
    model, *_ = trained(lambda m: AllReduce(m, ranks, compressor=PowerSGD(rank=4, start_updates=2)))  # full rank of the smaller matrix
    close(model, expected, atol=0.2)

    check_sums(ranks)
    check_agreement(ranks)
    check_evaluation(ranks)
    check_top_k(rank, world)
    check_memory(ranks, start, stop)

    model, *_ = trained(lambda m: LocalSGD(m, ranks, period=1))
    if SAMPLES % world == 0:
        close(model, expected)
    local_sgd(ranks, start, stop)

    model, comm, optimizer = trained(lambda m: FullyShard(m, ranks))
    assert sum(local(p).numel() for p in model.parameters()) < sum(p.numel() for p in model.parameters())
    close(model, expected)
    states = comm.full_state_dicts(optimizer)
    again = net()
    comm = FullyShard(again, ranks)
    optimizer = sgd(again)
    comm.load_full_state_dicts(optimizer, *states)
    close(again, expected)
    for p, buffer in zip(again.parameters(), (optimizer.state[p]["momentum_buffer"] for p in again.parameters()), strict=True):
        assert buffer.placements == p.placements
    if rank == 0:
        print("all equal", flush=True)
    leave()


def check_agreement(ranks):
    """What one knows all know; a mistake on one is a mistake on all."""
    assert ranks.all_gather(bytes([ranks.rank] * ranks.rank)) == [bytes([r] * r) for r in range(ranks.world_size)]
    assert ranks.broadcast_from_rank_0(b"told" if ranks.is_rank_0 else None) == b"told"
    assert ranks.run_on_rank_0(lambda: "by the first") == "by the first"
    ranks.check_identical({"version of torch": "2.13.0"})
    with pytest.raises(UserError, match=r"workers 0 and 1 differ in version of torch \('2.13.0' and '2.12.0'\)"):
        ranks.check_identical({"version of torch": "2.13.0" if ranks.is_rank_0 else "2.12.0"})

    def fails_on_one():
        if ranks.rank == 1:
            raise UserError("no data here")

    with pytest.raises(UserError, match="^no data here$" if ranks.rank == 1 else f"^worker 1 of {ranks.world_size}: no data here$"):
        ranks.run_on_all_ranks(fails_on_one)


def check_evaluation(ranks):
    """The same to the last bit as by one worker, with an equal number of passes too."""
    task, recipe = load_task("digits/mlp"), Recipe.named("digits/mlp")
    torch.manual_seed(1)
    model, data = task.model(), task.splits().train
    whole = evaluate(model, task, data, recipe=recipe)
    assert whole.num_samples == len(data)
    for equal_num_passes in (False, True):
        assert evaluate(model, task, data, recipe=recipe, ranks=ranks, equal_num_passes=equal_num_passes) == whole


def check_top_k(rank, world):
    """By hand: each sends its largest; what it kept is added next time."""

    class Bucket:
        def __init__(self, values):
            self.values = values

        def buffer(self):
            return self.values

        def index(self):
            return 0

    top = TopK(0.5)
    first = torch.tensor([4.0, 1.0]) if rank == 0 else torch.tensor([1.0, 2.0])
    got = top.comm_hook(Bucket(first.clone())).wait()
    torch.testing.assert_close(got, torch.tensor([4.0, 2.0 * (world - 1)]) / world)
    got = top.comm_hook(Bucket(torch.tensor([0.0, 0.0]))).wait()  # now what was kept: 1 each, in the other place
    torch.testing.assert_close(got, torch.tensor([1.0 * (world - 1), 1.0]) / world)
    assert float(top.state_dict()["errors"][0].abs().sum()) == 0


def check_memory(ranks, start, stop):
    """Half-way through a compressed run a new compressor takes up the memories: the end is the same to the last bit."""
    for make in (
        lambda: TopK(0.3),
        lambda: PowerSGD(rank=1, start_updates=2),
        lambda: Quantized("int4", block=16),
        lambda: SparseLoCo(chunk=16, top=4),
    ):
        ends = []
        for interrupted in (False, True):
            model = net()
            comm = AllReduce(model, ranks, compressor=make())
            with comm.warmup_pass():
                comm.forward(data(0)[0][:1]).sum().mul(0).backward()
            optimizer = sgd(model)
            optimizer.zero_grad()
            train(model, comm, optimizer, start, stop, last=4)
            if interrupted:
                memory, weights, momentum = comm.state_dict(), model.state_dict(), optimizer.state_dict()
                model = net()
                model.load_state_dict(weights)
                comm = AllReduce(model, ranks, compressor=make())
                with comm.warmup_pass():
                    comm.forward(data(0)[0][:1]).sum().mul(0).backward()
                comm.load_state_dicts([memory] * ranks.world_size)
                optimizer = sgd(model)
                optimizer.load_state_dict(momentum)
                optimizer.zero_grad()
            train(model, comm, optimizer, start, stop, first=4)
            ends.append([p.detach().clone() for p in model.parameters()])
        for a, b in zip(*ends, strict=True):
            assert torch.equal(a, b)


def check_groups(ranks, start, stop):
    """Pairs agree after every update, all four after every second; momenta are kept or start from zero where that is asked."""
    model = net()
    comm = LocalSGD(model, ranks, period=2, group_size=2, group_period=1)
    optimizer = sgd(model)
    for last, same in ((1, [True, True, False, False]), (2, [True] * 4)):
        train(model, comm, optimizer, start, stop, first=last - 1, last=last)
        mine = next(model.parameters()).detach()
        everyone = [torch.empty_like(mine) for _ in range(4)]
        dist.all_gather(everyone, mine)
        assert [torch.equal(everyone[0], other) for other in everyone] == same
    for momentum in ("keep", "reset"):
        model = net()
        optimizer = sgd(model)
        train(model, LocalSGD(model, ranks, period=2, momentum=momentum), optimizer, start, stop, last=2)
        buffer = optimizer.state[next(model.parameters())]["momentum_buffer"]
        everyone = [torch.empty_like(buffer) for _ in range(4)]
        dist.all_gather(everyone, buffer)
        assert torch.equal(everyone[0], everyone[1]) == (momentum == "reset")
        assert buffer.any() == (momentum == "keep")


def check_sums(ranks):
    """One value's sum has the same bits, however many are added in one call: how many losses are read at once, the clock decides."""
    each = [torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)) for rank in range(ranks.world_size)]
    expected = [sum(values) for values in zip(*(values.tolist() for values in each), strict=True)]  # Python's, from the first rank on
    for size in (1, 7, 40):
        together = [ranks.sum_(piece.clone()) for piece in each[ranks.rank].split(size)]
        assert torch.cat(together).tolist() == expected, size
    counts = torch.tensor(ranks.rank)
    assert ranks.sum_(counts) is counts
    assert counts == sum(range(ranks.world_size))


def local_sgd(ranks, start, stop):
    """Period 2 by hand: two steps on own samples, then the mean of all workers' weights and momenta."""
    model = net()
    comm = LocalSGD(model, ranks, period=2)
    optimizer = sgd(model)
    train(model, comm, optimizer, start, stop, last=2)
    mean = None
    for rank in range(ranks.world_size):
        a, b = SAMPLES * rank // ranks.world_size, SAMPLES * (rank + 1) // ranks.world_size
        other = net()
        own = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
        for update in range(2):
            x, y = (t[a:b] for t in data(update))
            (other(x) - y).square().sum().div(b - a).backward()
            own.step()
            own.zero_grad()
        weights = [p.detach() / ranks.world_size for p in other.parameters()]
        mean = weights if mean is None else [m + w for m, w in zip(mean, weights, strict=True)]
    close(model, mean)
    train(model, comm, optimizer, start, stop, first=2, last=3)
    before = [p.detach().clone() for p in model.parameters()]
    with comm.averaged_weights(optimizer):
        everyone = [torch.empty_like(before[0]) for _ in range(ranks.world_size)]
        dist.all_gather(everyone, next(model.parameters()).detach())
        assert all(torch.equal(everyone[0], other) for other in everyone)
        assert not torch.equal(everyone[0], before[0])
        saved = comm.state_dict()
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q), "an evaluation leaves each worker its own weights"
    assert len(saved["own"]) == 8
    if ranks.world_size == 4:
        check_groups(ranks, start, stop)
    post = net()
    comm = LocalSGD(post, ranks, period=3, start_updates=UPDATES)  # never local in so few updates: all-reduce
    train(post, comm, sgd(post), start, stop)
    close(post, alone())


if __name__ == "__main__":
    main()
