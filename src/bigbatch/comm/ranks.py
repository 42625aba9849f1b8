"""The ranks of a run, and the collectives that the trainer needs.

Launch, rendezvous and restarts are torchrun's. In a single process every collective is the identity, so callers need no special case.
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
from bigbatch.core.environment import TIMEOUT, WAIT_S, how_to_go_on, join_launcher, read_variable
from bigbatch.core.hardware.devices import CPU, choose_device, current
from bigbatch.core.tensors.ordered_sum import sum_over_ranks_

T = TypeVar("T")
DESTROY_TIMEOUT_S = 10.0
"""Longest wait, in seconds, for the process group between GPUs to be destroyed."""


class Ranks(NamedTuple):
    """This process is rank `rank` of `world_size`. All ranks call each collective, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: Any = None  # process group, if these are not all ranks; its first member is rank 0 of all

    @property
    def is_rank_0(self) -> bool:
        """Whether this is rank 0, which prints, writes files and reads clocks."""
        return self.rank == 0

    @property
    def host_device(self) -> torch.device:
        """The device for values that are communicated but not computed on: the CPU, unless the process group has no backend for it."""
        return CPU if self.world_size == 1 or backend_of(CPU, self.group) is not None else self.device

    def sum_(self, values: Tensor) -> Tensor:
        """All-reduce by sum, in place and in the order of the ranks, so that the sum of one value does not depend on the other values.

        For a few values only: every rank receives the values of all others.
        """
        return sum_over_ranks_(values, self.group) if self.world_size > 1 else values

    def max_(self, values: Tensor) -> Tensor:
        """All-reduce by maximum, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def all_gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, which may differ in length, ordered by rank."""
        if self.world_size == 1:
            return [data]
        host = self.host_device
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=host)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes, group=self.group)
        own = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=host)
        own[: len(data)] = _as_tensor(data).to(host)
        received = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(received, own, group=self.group)
        return [bytes(t[:size].cpu().numpy()) for t, size in zip(received, sizes.tolist(), strict=True)]

    def broadcast_from_rank_0(self, data: bytes | None) -> bytes:
        """Broadcast the bytes of rank 0 to all ranks; the others may pass None."""
        if self.world_size == 1:
            assert data is not None
            return data
        host = self.host_device
        size = torch.tensor([len(data) if data is not None and self.is_rank_0 else 0], device=host)
        dist.broadcast(size, src=0, group=self.group)
        own = _as_tensor(data) if data is not None and self.is_rank_0 else torch.empty(int(size), dtype=torch.uint8)
        own = own.to(host)
        dist.broadcast(own, src=0, group=self.group)
        return bytes(own.cpu().numpy())

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises a UserError on one of them, all ranks raise.

        Returns:
            What the function returned on this rank.

        Raises:
            UserError: This rank's own error, or the error of another rank with that rank's number.
        """
        error: UserError | None = None
        try:
            result = action()
        except UserError as own:
            error = own
        if self.world_size > 1:
            errors = [text.decode() for text in self.all_gather(str(error or "").encode())]
            failed = [rank for rank, text in enumerate(errors) if text]
            if failed and error is None:
                raise Elsewhere(f"worker {failed[0]} of {self.world_size}: {errors[failed[0]]}")
            if failed and not self.is_rank_0 and errors[0] == str(error):
                raise Elsewhere(str(error)) from error
        if error is not None:
            raise error
        return result

    def run_on_rank_0(self, action: Callable[[], str]) -> str:
        """Run a function on rank 0 and broadcast its result; if it raises a UserError, all ranks raise."""
        result = self.run_on_all_ranks(lambda: action() if self.is_rank_0 else "")
        return self.broadcast_from_rank_0(result.encode() if self.is_rank_0 else None).decode()

    def check_identical(self, values: Mapping[str, str]) -> None:
        """Check that all ranks have the same values, such as the same recipe.

        Args:
            values: The values of this rank, by name.

        Raises:
            UserError: On every rank, with the names of the values that differ and the first difference.
        """
        by_rank = [json.loads(text) for text in self.all_gather(json.dumps(dict(values)).encode())]
        for rank, theirs in enumerate(by_rank):
            differing = [name for name in values if theirs.get(name) != by_rank[0].get(name)]
            if differing:
                name = differing[0]
                raise (UserError if self.is_rank_0 else Elsewhere)(
                    f"workers 0 and {rank} differ in {', '.join(differing)} ({_first_difference(by_rank[0].get(name), theirs.get(name))}): "
                    "must be the same on all workers; start all of them with the same command and the same versions"
                )


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group(*, device: str | torch.device | None = None, timeout_s: float = WAIT_S, store: Any = None) -> Iterator[Ranks]:
    """Context in which this process is a rank of the process group that torchrun's environment variables describe.

    Without these variables, the run has a single process. An existing default process group is used, and not destroyed.

    Args:
        device: Of this rank; torch's current device inside the context. By default BIGBATCH_DEVICE, else the GPU of LOCAL_RANK if there
            is one, else the CPU.
        timeout_s: Time-out of the rendezvous and of every collective; BIGBATCH_TIMEOUT_S overrides it.
        store: A `torch.distributed.Store` for the rendezvous, in place of MASTER_ADDR.

    Raises:
        UserError: If the rendezvous times out, an environment variable is invalid, or the device does not exist.
        LostWorkers: If a collective fails because other ranks died or do not respond.
    """
    join_launcher()
    device = _choose_device(device)
    with current(device):
        if dist.is_initialized():
            yield Ranks(dist.get_rank(), dist.get_world_size(), device)
            return
        world_size, rank, timeout_s = read_variable("WORLD_SIZE", 1), read_variable("RANK"), read_variable(TIMEOUT, timeout_s)
        if world_size == 1:
            yield Ranks(device=device)
            return
        if rank is None or rank >= world_size:
            value = " is not set" if rank is None else f"={rank}"
            raise UserError(
                f"WORLD_SIZE={world_size} and RANK{value}: RANK must be from 0 to {world_size - 1}; start with torchrun, or unset both"
            )
        watch_launcher()
        store = store or store_from_environment(rank, world_size)
        init_process_group(rank, world_size, device, timeout_s, store)
        try:
            with heartbeats(rank, world_size, timeout_s) if device.type != "cpu" else nullcontext():
                yield Ranks(rank, world_size, device)
        except RuntimeError as error:
            if is_lost_worker_error(error):
                why = " ".join(str(error).split())[:200]
                raise LostWorkers(
                    f"worker {rank} of {world_size} lost the others ({why}); to go on from the last checkpoint, {how_to_go_on()}"
                ) from None
            raise
        finally:
            time.sleep(0.1)  # gloo's destructor holds the GIL while it joins its threads: let them release their tensors first
            _destroy_process_group(device)
            if hasattr(store, "close"):
                store.close()


def _destroy_process_group(device: torch.device) -> None:
    """Destroy the process group; with NCCL in a thread with a time-out, since NCCL may wait for a rank that is gone."""
    if device.type == "cpu":
        dist.destroy_process_group()
        return
    thread = threading.Thread(target=dist.destroy_process_group, daemon=True, name="destroy process group")
    thread.start()
    thread.join(DESTROY_TIMEOUT_S)


def _choose_device(device: str | torch.device | None) -> torch.device:
    """The device of this rank; if it does not exist, only the first rank of the machine prints the error."""
    try:
        return choose_device(device)
    except UserError as error:
        if read_variable("LOCAL_RANK", 0):
            raise Elsewhere(str(error)) from None
        raise


def is_lost_worker_error(error: Exception) -> bool:
    """Whether a collective failed because other ranks died or do not respond; gloo raises a plain RuntimeError then."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _first_difference(a: str | None, b: str | None) -> str:
    for x, y in zip((a or "").splitlines(), (b or "").splitlines(), strict=False):
        if x != y:
            return f"{x.strip()!r} and {y.strip()!r}"
    return f"{a!r} and {b!r}"[:200]
