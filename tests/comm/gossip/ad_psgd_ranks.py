"""One rank of test_ad_psgd.py: a hand-written loop on quadratics f_i(x) = |x - c_i|^2 / 2."""

import os
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tests import stand_in
from tests.distributed.ranks import leave
from torch import nn

from bigbatch.comm.gossip.ad_psgd import ADPSGD
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError


def gathered(value, world):
    everyone = [torch.empty_like(value) for _ in range(world)]
    dist.all_gather(everyone, value)
    return torch.stack(everyone)


def run(rank, world, *, lr, updates, pause_s=0.0, target=0.0, start=None, at_update=lambda update: None):
    """A loop of this rank; what all hold at its end."""
    model = PLACE["moved"](nn.Linear(3, 1).double())
    comm = PLACE["kind"](model, Ranks(rank, world, PLACE["device"]), seed=1)
    if start is not None:
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(start)
        comm._x = comm._flat_weights()
        comm._snapshot = comm._x.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    dist.barrier()
    with comm.running():
        for update in range(updates):
            optimizer.zero_grad()
            loss = (
                sum((p - target).square().sum() / 2 for p in model.parameters())
                if target is not None
                else sum(0 * p.sum() for p in model.parameters())
            )
            loss.backward()
            time.sleep(pause_s)
            optimizer.step()
            comm.after_step(optimizer, update + 1)
            at_update(update + 1)
    return comm, gathered(comm._flat_weights(), world).to("cpu")


class WhereThreadsMoveToo(ADPSGD):
    """A mode of torch's is its thread's own."""

    def _run_thread(self):
        with stand_in.Moves():
            super()._run_thread()


PLACE = {"device": torch.device("cpu"), "moved": lambda model: model, "kind": ADPSGD}


def one_fails():
    """It lets its error through before the other is through with its updates, and the other notices that it is gone."""
    (rank, world), updates, made = start(), 20_000, []

    def at_update(update):
        made.append(update)
        if rank == 1 and update == 3:
            raise ZeroDivisionError("of this rank")

    with pytest.raises(ZeroDivisionError if rank == 1 else RuntimeError):
        run(rank, world, lr=0.0, updates=updates, pause_s=0.01, at_update=at_update)
    assert len(made) < updates
    leave()


def main(*where):
    if where == ("one fails",):
        one_fails()
    if where:
        PLACE.update(device=stand_in.GPU, moved=stand_in.moved, kind=WhereThreadsMoveToo)
        with stand_in.Moves():
            all_come_together(*start(), updates=40, within=0.5)
        leave()
    play()


def start():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    torch.manual_seed(0)

    return rank, world


def all_come_together(rank, world, *, updates, within):
    """Nothing to learn: averages are at once on both sides, so the mean stays, and all come together."""
    comm, everyone = run(rank, world, lr=0.0, updates=updates, pause_s=0.001 * (1 + rank), start=float(rank))
    torch.testing.assert_close(everyone.mean(0), torch.full((4,), (world - 1) / 2).double(), rtol=0, atol=1e-12)
    assert (everyone - everyone.mean(0)).abs().max() < within
    assert comm.averages > updates // 6
    optimizer = torch.optim.SGD(comm.model.parameters(), lr=0.02)
    own = comm._flat_weights().to("cpu")
    with comm.averaged_weights(optimizer):
        torch.testing.assert_close(comm._flat_weights().to("cpu"), everyone.mean(0), rtol=0, atol=1e-12)
    assert torch.equal(comm._flat_weights().to("cpu"), own)


def play():
    rank, world = start()
    all_come_together(rank, world, updates=120, within=0.1)

    # Gradients of each one's own target lead all to the mean of the targets, where all keep pace.
    paces = dist.FileStore(os.environ["STORE"] + ".paces", world)

    def keep_pace(update):
        if update % 20 == 0:
            paces.set(f"{rank} at {update}", "")
            paces.wait([f"{other} at {update}" for other in range(world)], timedelta(seconds=60))

    comm, everyone = run(rank, world, lr=0.02, updates=400, pause_s=0.001, target=float(rank), at_update=keep_pace)
    torch.testing.assert_close(everyone.mean(0), torch.full((4,), (world - 1) / 2).double(), rtol=0, atol=0.3)
    optimizer = torch.optim.SGD(comm.model.parameters(), lr=0.02)
    comm.average_weights(optimizer)
    torch.testing.assert_close(comm._flat_weights(), everyone.mean(0), rtol=0, atol=1e-12)

    # A slow worker holds nobody up: it goes on only when the others have told it that all their updates are made.
    slow, store = rank == world - 1, dist.FileStore(os.environ["STORE"] + ".told", world)
    told = [f"{other} is through" for other in range(world - 1)]

    def at_update(update):
        if slow and update == 2:
            store.wait(told, timedelta(seconds=60))
        if not slow and update == 60:
            store.set(told[rank], "")

    run(rank, world, lr=0.02, updates=60, target=0.0, at_update=at_update)

    with pytest.raises(UserError, match=r"neighbours = \[.*\] of worker \d: must be among"):
        ADPSGD(nn.Linear(1, 1), Ranks(rank, world), neighbours=[rank])
    with pytest.raises(UserError, match="AD-PSGD with 3 workers: half of them must be active and half passive"):
        ADPSGD(nn.Linear(1, 1), Ranks(rank, 3))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
