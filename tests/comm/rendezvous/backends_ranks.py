"""One rank of test_backends.py: workers that believe to be on GPUs, whose values are on the CPU all the same."""

import os
import time
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn

from bigbatch.comm import ranks
from bigbatch.comm.compression.compressor import HalfPrecision
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.ranks import process_group
from bigbatch.comm.rendezvous import backends
from bigbatch.comm.rendezvous.backends import backend_of, choose_backend
from bigbatch.core.checks import Elsewhere, UserError


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks.current = lambda device: nullcontext()

    def among(name, device, identity):
        ranks.choose_device, backends.identity_of = lambda asked: torch.device(device), lambda device: identity
        return process_group(store=dist.FileStore(f"{os.environ['STORE']}.{name}", world), timeout_s=200.0)

    # On devices of two kinds nobody waits for anybody: all are told at once.
    kind, began = "cuda:0" if rank else "cpu", time.monotonic()
    with pytest.raises(
        UserError, match="worker 0 is on cpu and worker 1 on cuda: all need the same type of device; use --device cpu"
    ) as refused:
        among("mixed", kind, "").__enter__()
    assert isinstance(refused.value, Elsewhere) == (rank > 0)
    assert time.monotonic() - began < 100

    # All on one GPU: by gloo, and the first worker says so, once.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with among("shared", "cuda:0", "the only one") as together:
            assert (together.rank, together.world_size, together.device) == (rank, world, torch.device("cuda:0"))
            assert together.host_device == torch.device("cpu")
            assert backend_of(together.device) == "gloo"
            with pytest.raises(UserError, match="fully_shard: workers share a GPU"):
                FullyShard(nn.Linear(2, 2), together)
            with pytest.raises(UserError, match="compression bf16 with gloo: gloo cannot reduce bfloat16"):
                HalfPrecision(torch.bfloat16, device=together.device)
            assert together.all_gather(b"%d" % rank) == [b"%d" % r for r in range(world)]
            assert together.broadcast_from_rank_0(b"first" if rank == 0 else None) == b"first"
    notes = [str(w.message) for w in said if "share a GPU" in str(w.message)]
    assert len(notes) == (0 if rank else 1)
    assert all(note == choose_backend([("cuda", "the only one")] * world)["note"] for note in notes)
    leave()


if __name__ == "__main__":
    main()
