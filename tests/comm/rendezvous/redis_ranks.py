"""One rank of test_redis_store.py. Arguments: what to do, the server's address, its process id."""

import os
import re
import signal
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave

from bigbatch.comm.rendezvous.redis_store import RedisStore
from bigbatch.core.checks import UserError

SERVER_GONE = r"^Redis at 127\.0\.0\.1.*does not respond.*start it"


def init(store, rank, world, **settings):
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, **settings)


def total(rank, group=None):
    x = torch.tensor([rank + 1.0])
    dist.all_reduce(x, group=group)
    return x.item()


def expect(kind, message, act):
    """`act` fails with this message within 30 s."""
    start = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        act()
    assert time.monotonic() - start < 30
    print("refused:", caught.value)


def meet(store, pid, rank, world):
    """All that asks the store; then the server is killed, and all that must go on without it."""
    init(store, rank, world)
    assert total(rank) == 10
    dist.barrier()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    assert total(rank, pairs[rank // 2]) == (3 if rank < 2 else 7)
    dist.barrier()
    if rank == 0:
        os.kill(pid, signal.SIGKILL)
    assert total(rank) == 10
    expect(UserError, SERVER_GONE, lambda: dist.new_group([0, 1, 2, 3]))
    assert total(rank) == 10


def server_dies_first(store, pid, rank, world):
    """Rank 0 kills the server before its own rendezvous, while the other is in it."""
    store.add("ready", 1)
    while rank == 0 and store.add("ready", 0) < world:
        time.sleep(0.01)
    if rank == 0:
        os.kill(pid, signal.SIGKILL)
    expect(UserError, SERVER_GONE, lambda: init(store, rank, world))


def rank_is_missing(store, pid, rank, world):
    """Rank 1 never makes a store."""
    message = re.escape("key '0//cpu//0/1': not stored after 3 s") + ".* 1 of 2 ranks never joined, such as rank 1"
    expect(dist.DistStoreError, message, lambda: init(store, rank, world, timeout=timedelta(seconds=3)))


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    act, url, pid = sys.argv[1:]
    if act == "rank_is_missing" and rank == 1:
        return
    torch.set_num_threads(1)
    store = RedisStore(url, job=act, rank=rank, world_size=world)
    acts = {"meet": meet, "server_dies_first": server_dies_first, "rank_is_missing": rank_is_missing}
    acts[act](store, int(pid), rank, world)
    if dist.is_initialized():
        dist.destroy_process_group()
    store.close()
    print("done")
    leave()


if __name__ == "__main__":
    main()
