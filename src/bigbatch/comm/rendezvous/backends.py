"""How workers meet: through which store, and over which backends, on which all of them agree before there is a process group.

Values of the host go by gloo, tensors of GPUs by NCCL ("cpu:gloo,cuda:nccl"). NCCL refuses two workers on one GPU; gloo does not, so where
any two share a GPU all tensors go by gloo, through the host's memory.
"""

import json
import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from bigbatch.core.checks import Elsewhere, UserError
from bigbatch.core.devices import CPU, identity_of
from bigbatch.core.environment import JOB, STORE, read_variable

ACK_TIMEOUT_S = 5.0
"""Seconds that the first worker waits until all have heard that they can't go together; the store may be its own."""


def store_from_environment(rank: int, world_size: int) -> Any:
    """Where BIGBATCH_STORE says, for the job that BIGBATCH_JOB or torchrun's --rdzv-id names; None if it says nothing.

    Raises:
        UserError: If it says where, and nothing says for which job.
    """
    if (url := read_variable(STORE)) is None:
        return None
    from bigbatch.comm.rendezvous.redis_store import RedisStore

    job = read_variable(JOB) or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none":
        raise UserError("a store without a name of the job: two jobs would mix; give one with --job NAME, or to torchrun with --rdzv-id")
    generation = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return RedisStore(url, job=job, rank=rank, world_size=world_size, generation=generation)


def init_process_group(rank: int, world_size: int, device: torch.device, timeout_s: float, store: Any = None) -> None:
    """Make the process group of all workers.

    Args:
        rank: Of this worker.
        world_size: How many there are.
        device: Of this worker.
        timeout_s: How long to wait for the others, here and in every exchange.
        store: Where to meet; None for MASTER_ADDR.

    Raises:
        UserError: If the others can't be reached in time, or are on devices of another kind.
    """
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}" if store is None else "the store"
    timeout = timedelta(seconds=timeout_s)
    try:
        store = store if store is not None else next(rendezvous("env://", rank, world_size, timeout=timeout))[0]
        decided = _agree_on_backend(PrefixStore("devices", store), rank, world_size, device, timeout)
        if "error" not in decided:
            group_store = PrefixStore("default_pg", store)
            dist.init_process_group(decided["backend"], store=group_store, rank=rank, world_size=world_size, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"worker {rank} of {world_size}: did not meet the others at {where} within {timeout_s:g} s ({why}); are all started, "
            "and can they reach each other?"
        ) from None
    if "error" in decided:
        if hasattr(store, "close"):
            store.close()  # all have come, and may come again under the same name
        raise (Elsewhere if rank else UserError)(decided["error"])
    if "note" in decided and rank == 0:
        warnings.warn(decided["note"], stacklevel=2)


def choose_backend(places: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What backends workers take.

    Args:
        places: Of each worker, by rank: the type of its device, and what identifies it (see `identity_of`).

    Returns:
        The "backend", with a "note" for the user where there is one; or an "error".

    >>> choose_backend([("cpu", ""), ("cpu", "")])
    {'backend': 'gloo'}
    >>> choose_backend([("cuda", "a"), ("cuda", "b")])
    {'backend': 'cpu:gloo,cuda:nccl'}
    """
    kind = places[0][0]
    for rank, (theirs, _) in enumerate(places):
        if theirs != kind:
            return {"error": f"worker 0 is on {kind} and worker {rank} on {theirs}: must be alike; give --device cpu, or mend that machine"}
    if kind == "cpu":
        return {"backend": "gloo"}
    first = {identity: rank for rank, (_, identity) in reversed(list(enumerate(places)))}
    if len(first) < len(places):
        other = next(rank for rank, (_, identity) in enumerate(places) if first[identity] != rank)
        return {
            "backend": "gloo",
            "note": f"workers {first[places[other][1]]} and {other} share a GPU ({len(first)} for {len(places)} workers): they exchange by "
            f"gloo, through the host's memory; {len(first)} workers, each with a GPU of its own, would do so by "
            f"{dist.get_default_backend_for_device(kind)}",
        }
    return {"backend": f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"}


def backend_of(device: torch.device, group: Any = None) -> str | None:
    """Name of the backend by which a process group exchanges tensors of a device; None if it can't."""
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return next((backend for kind, _, backend in pairs if kind == device.type), None)


def cpu_group() -> Any:
    """A group of all workers over which tensors of the CPU can be sent to anybody, and received from anybody. All workers call this.

    None, which is the default group, where that has gloo for the CPU; else a new group.
    """
    return None if backend_of(CPU) == "gloo" else dist.new_group(backend="gloo")


def _agree_on_backend(store: Any, rank: int, world_size: int, device: torch.device, timeout: timedelta) -> dict[str, str]:
    """What the first worker decides, from where all of them are."""
    store.set(f"{rank}", json.dumps([device.type, identity_of(device)]))
    if rank == 0:
        everyone = [f"{r}" for r in range(world_size)]
        store.wait(everyone, timeout)
        store.set("decided", json.dumps(choose_backend([tuple(json.loads(store.get(r))) for r in everyone])))
    store.wait(["decided"], timeout)
    decided: dict[str, str] = json.loads(store.get("decided"))
    if "error" in decided:
        store.set(f"heard by {rank}", "")
        if rank == 0:
            store.wait([f"heard by {r}" for r in range(world_size)], timedelta(seconds=ACK_TIMEOUT_S))
    return decided
