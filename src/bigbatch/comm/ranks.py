"""The workers of a run, and the few things that all of them must know alike.

Launch, rendezvous and restarts are torchrun's; this is what a worker does once it runs. Alone, every method is the identity, so that
nothing else asks whether there are others.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bigbatch.comm.launch.launcher import watch_launcher
from bigbatch.comm.rendezvous.backends import backend_of, init_process_group, store_from_environment
from bigbatch.comm.rendezvous.heartbeat import heartbeats
from bigbatch.core.checks import Elsewhere, LostWorkers, UserError
from bigbatch.core.devices import CPU, choose_device, current
from bigbatch.core.environment import TIMEOUT, WAIT_S, join_launcher, read_variable
from bigbatch.core.ordered_sum import sum_over_ranks_

T = TypeVar("T")
DESTROY_TIMEOUT_S = 10.0
"""Seconds that a process group between GPUs may take to be destroyed."""


class Ranks(NamedTuple):
    """This worker is number `rank` of `world_size`; every collective is called by all of them, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: Any = None  # process group, where these are not all; its first member is rank 0 of all

    @property
    def first(self) -> bool:
        """Whether this is the worker that speaks, writes files and reads clocks."""
        return self.rank == 0

    @property
    def host(self) -> torch.device:
        """Where to put what is exchanged and not of the device: the CPU, unless the process group has no backend for it."""
        return CPU if self.world_size == 1 or backend_of(CPU, self.group) is not None else self.device

    def sum_(self, values: Tensor) -> Tensor:
        """Add up over all workers, in place and in the order of their ranks: the sum of one value does not depend on the others.

        For a few values: every worker receives those of all others.
        """
        return sum_over_ranks_(values, self.group) if self.world_size > 1 else values

    def max_(self, values: Tensor) -> Tensor:
        """Largest over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def gather(self, data: bytes) -> list[bytes]:
        """What every worker has, by rank."""
        if self.world_size == 1:
            return [data]
        host = self.host
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=host)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes, group=self.group)
        own = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=host)
        own[: len(data)] = _as_tensor(data).to(host)
        received = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(received, own, group=self.group)
        return [bytes(t[:size].cpu().numpy()) for t, size in zip(received, sizes.tolist(), strict=True)]

    def broadcast_from_rank_0(self, data: bytes | None) -> bytes:
        """What the first worker has, on all of them."""
        if self.world_size == 1:
            assert data is not None
            return data
        host = self.host
        size = torch.tensor([len(data) if data is not None and self.first else 0], device=host)
        dist.broadcast(size, src=0, group=self.group)
        own = _as_tensor(data) if data is not None and self.first else torch.empty(int(size), dtype=torch.uint8)
        own = own.to(host)
        dist.broadcast(own, src=0, group=self.group)
        return bytes(own.cpu().numpy())

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every worker; if one of them fails by a UserError, all of them do, and each says where.

        Returns:
            What the action returned here.

        Raises:
            UserError: The worker's own error as it is; another's with its rank.
        """
        error: UserError | None = None
        try:
            result = action()
        except UserError as own:
            error = own
        if self.world_size > 1:
            errors = [text.decode() for text in self.gather(str(error or "").encode())]
            failed = [rank for rank, text in enumerate(errors) if text]
            if failed and error is None:
                raise Elsewhere(f"worker {failed[0]} of {self.world_size}: {errors[failed[0]]}")
            if failed and not self.first and errors[0] == str(error):
                raise Elsewhere(str(error)) from error
        if error is not None:
            raise error
        return result

    def run_on_rank_0(self, action: Callable[[], str]) -> str:
        """Do something on the first worker alone and tell the others; if it fails by a UserError, it fails on all."""
        told = self.together(lambda: action() if self.first else "")
        return self.broadcast_from_rank_0(told.encode() if self.first else None).decode()

    def check_identical(self, facts: Mapping[str, str]) -> None:
        """Refuse workers that would train different things.

        Args:
            facts: What must be the same everywhere, by name.

        Raises:
            UserError: On every worker, with what differs and where.
        """
        everyone = [json.loads(text) for text in self.gather(json.dumps(dict(facts)).encode())]
        for rank, theirs in enumerate(everyone):
            differing = [name for name in facts if theirs.get(name) != everyone[0].get(name)]
            if differing:
                name = differing[0]
                raise (UserError if self.first else Elsewhere)(
                    f"workers 0 and {rank} differ in {', '.join(differing)} ({_first_difference(everyone[0].get(name), theirs.get(name))}): "
                    "must be the same on all; start all of them by the same command and with the same versions"
                )


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group(*, device: str | torch.device | None = None, timeout_s: float = WAIT_S, store: Any = None) -> Iterator[Ranks]:
    """Take part in the run that torchrun started this process for; alone where it was started by hand.

    A process group that exists already is used and left as it is.

    Args:
        device: Of this worker, made torch's current one meanwhile; by default what BIGBATCH_DEVICE says, else the GPU of its LOCAL_RANK
            if there is one, else the CPU.
        timeout_s: How long to wait for the others, at the start and in every exchange; BIGBATCH_TIMEOUT_S overrides it.
        store: A `torch.distributed.Store` to meet at instead of MASTER_ADDR.

    Raises:
        UserError: If the others can't be reached in time, or the environment says something impossible about this worker, or there is
            no such device.
        LostWorkers: From whatever is done inside, once others died or fell silent.
    """
    join_launcher()
    place = _choose_device(device)
    with current(place):
        if dist.is_initialized():
            yield Ranks(dist.get_rank(), dist.get_world_size(), place)
            return
        world_size, rank, timeout_s = read_variable("WORLD_SIZE", 1), read_variable("RANK"), read_variable(TIMEOUT, timeout_s)
        if world_size == 1:
            yield Ranks(device=place)
            return
        if rank is None or rank >= world_size:
            told = "is not set" if rank is None else f"={rank}"
            raise UserError(
                f"WORLD_SIZE={world_size} and RANK {told}: must be from 0 to {world_size - 1}; start by torchrun, or unset both"
            )
        watch_launcher()
        store = store or store_from_environment(rank, world_size)
        init_process_group(rank, world_size, place, timeout_s, store)
        try:
            with heartbeats(rank, world_size, timeout_s) if place.type != "cpu" else nullcontext():
                yield Ranks(rank, world_size, place)
        except RuntimeError as error:
            if is_lost_worker_error(error):
                why = " ".join(str(error).split())[:200]
                raise LostWorkers(
                    f"worker {rank} of {world_size} lost the others ({why}); go on from the last checkpoint with --resume"
                ) from None
            raise
        finally:
            time.sleep(0.1)  # gloo's destructor holds Python's lock while it waits for its threads: let them finish letting go of tensors
            _destroy_process_group(place)
            if hasattr(store, "close"):
                store.close()


def _destroy_process_group(device: torch.device) -> None:
    """Destroy the process group; NCCL may wait for a worker that is gone, and is not waited for."""
    if device.type == "cpu":
        dist.destroy_process_group()
        return
    thread = threading.Thread(target=dist.destroy_process_group, daemon=True, name="let go of the others")
    thread.start()
    thread.join(DESTROY_TIMEOUT_S)


def _choose_device(device: str | torch.device | None) -> torch.device:
    """The device of this worker; where there is no such device, the first worker of a machine says so."""
    try:
        return choose_device(device)
    except UserError as error:
        if read_variable("LOCAL_RANK", 0):
            raise Elsewhere(str(error)) from None
        raise


def is_lost_worker_error(error: Exception) -> bool:
    """Whether an exchange failed because others died or fell silent: gloo says so by a RuntimeError like any other."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _first_difference(a: str | None, b: str | None) -> str:
    for x, y in zip((a or "").splitlines(), (b or "").splitlines(), strict=False):
        if x != y:
            return f"{x.strip()!r} and {y.strip()!r}"
    return f"{a!r} and {b!r}"[:200]
