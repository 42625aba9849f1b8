"""A trainer, rank 0, and its maker, rank 1, over gloo: each function below is run by both."""

import os
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.ranks import leave
from torch import nn

from bigbatch.adversarial import Attack, ConAdv
from bigbatch.adversarial.concurrent import made_here
from bigbatch.adversarial.makers import RemoteMaker, serve_examples
from bigbatch.layers import adversarial_stream, convert_split_batch_norm

TIMEOUT_S = {"a_slow_trainer": 2}


def attack_of(seed):
    """A model with what is hard to send: several types of buffers, memory in channels-last order, dropout."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8 * 16, 5)]
    model = convert_split_batch_norm(nn.Sequential(*layers)).to(memory_format=torch.channels_last).train()
    return Attack(
        model,
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        within=lambda: adversarial_stream(model),
        seed=(5,),
    )


def pieces_of(number):
    generator = torch.Generator().manual_seed(number)
    return [(torch.rand(n, 3, 6, 6, generator=generator), torch.randint(5, (n,), generator=generator)) for n in (8, 8, 5)]


def step(model, number):
    generator = torch.Generator().manual_seed(1000 + number)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def serve(expected=None):
    served = serve_examples(attack_of(seed=99), 0, device=torch.device("cpu"))  # weights of its own at first
    assert expected is None or served == expected


def what_one_would_make_oneself(rank):
    if rank == 1:
        serve(6)
        return
    for tau in (1, 2):
        ends = []
        for remote in (True, False):
            attack, link = attack_of(seed=0), RemoteMaker(1)
            conadv = ConAdv(link.maker(attack.model) if remote else made_here(attack), eps=0.1, low=0.0, high=1.0, tau=tau)
            updates, seen = iter([pieces_of(number) for number in range(3)]), []
            while (twins := conadv.next_update(lambda updates=updates: next(updates, None))) is not None:
                step(attack.model, len(seen))
                seen.append(torch.cat([t.adversarial for t in twins]))
            ends.append(seen)
        for mine, theirs in zip(*ends, strict=True):
            assert torch.equal(mine, theirs)
    link = RemoteMaker(1)
    assert link.maker(attack.model)([], 0)() == []  # a worker without samples has nothing to order
    link.close()


def training_goes_on_meanwhile(rank):
    """An order is of the weights when it was given, whatever becomes of them while it is on its way, and can be asked for twice."""
    if rank == 1:
        time.sleep(1)  # the order waits, and the trainer does not
        serve(1)
        return
    attack, link = attack_of(seed=0), RemoteMaker(1)
    expected = attack.directions(pieces_of(0), 3)
    pieces = pieces_of(0)
    promise = link.maker(attack.model)(pieces, 3)
    step(attack.model, 0)
    for x, _ in pieces:
        x.zero_()
    for _ in range(2):
        for direction, own in zip(promise(), expected, strict=True):
            assert torch.equal(direction, own)
    link.close()


def a_trainer_that_stops(rank):
    """With an order under way."""
    if rank == 1:
        serve(1)
        return
    link = RemoteMaker(1)
    link.maker(attack_of(seed=0).model)(pieces_of(0), 0)
    link.close()


def a_lost_maker(rank):
    if rank == 1:
        time.sleep(0.5)
        os._exit(0)
    link, begun = RemoteMaker(1), time.monotonic()
    promise = link.maker(attack_of(seed=0).model)(pieces_of(0), 0)
    with pytest.raises(RuntimeError):
        promise()
    print(f"lost after {time.monotonic() - begun:.1f} s")
    link.close()  # never raises


def a_slow_trainer(rank):
    if rank == 1:
        serve(2)
        return
    attack, link = attack_of(seed=0), RemoteMaker(1)
    for number in range(2):
        link.maker(attack.model)(pieces_of(number), number)()
        time.sleep(4)
    link.close()


if __name__ == "__main__":
    rank, name = int(os.environ["RANK"]), sys.argv[1]
    timeout = timedelta(seconds=TIMEOUT_S.get(name, 300))
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=2, timeout=timeout)
    torch.set_num_threads(1)
    globals()[name](rank)
    leave()
