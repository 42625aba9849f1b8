"""Initialise the process group: the rendezvous store, and the backends, which all ranks agree on first.

CPU tensors use gloo, GPU tensors NCCL ("cpu:gloo,cuda:nccl"). NCCL does not support two ranks on one GPU; so if any two ranks share a GPU,
all tensors use gloo, through host memory.
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
from bigbatch.core.environment import JOB, STORE, read_variable
from bigbatch.core.hardware.devices import CPU, identity_of

ACK_TIMEOUT_S = 5.0
"""Seconds that rank 0, which may host the store, waits until all ranks have read an error."""


def store_from_environment(rank: int, world_size: int) -> Any:
    """The store at BIGBATCH_STORE for the job of BIGBATCH_JOB or torchrun's --rdzv-id; None if BIGBATCH_STORE is not set.

    Raises:
        UserError: If there is no job name.
    """
    if (url := read_variable(STORE)) is None:
        return None
    from bigbatch.comm.rendezvous.redis_store import RedisStore

    job = read_variable(JOB) or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none":
        raise UserError("a store needs a job name, or two jobs could mix; give one with --job NAME, or with torchrun's --rdzv-id")
    generation = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return RedisStore(url, job=job, rank=rank, world_size=world_size, generation=generation)


def init_process_group(rank: int, world_size: int, device: torch.device, timeout_s: float, store: Any = None) -> None:
    """Initialise the default process group, with backends that suit the devices of all ranks.

    Args:
        rank: Rank of this process.
        world_size: Number of ranks.
        device: Device of this rank.
        timeout_s: Time-out of the rendezvous and of every collective.
        store: Store for the rendezvous; None for MASTER_ADDR.

    Raises:
        UserError: If the rendezvous times out, or ranks have different types of device.
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
            f"worker {rank} of {world_size}: could not connect to the others at {where} within {timeout_s:g} s ({why}); check that all "
            "workers are started and can reach each other"
        ) from None
    if "error" in decided:
        if hasattr(store, "close"):
            store.close()  # all ranks have joined, and may join again under the same job name
        raise (Elsewhere if rank else UserError)(decided["error"])
    if "note" in decided and rank == 0:
        warnings.warn(decided["note"], stacklevel=2)


def choose_backend(devices: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Choose the backends from the devices of all ranks.

    Args:
        devices: Type and identity (see `identity_of`) of each rank's device, by rank.

    Returns:
        The "backend", perhaps with a "note" for the user; or an "error".

    >>> choose_backend([("cpu", ""), ("cpu", "")])
    {'backend': 'gloo'}
    >>> choose_backend([("cuda", "a"), ("cuda", "b")])
    {'backend': 'cpu:gloo,cuda:nccl'}
    """
    kind = devices[0][0]
    for rank, (theirs, _) in enumerate(devices):
        if theirs != kind:
            rule = "all need the same type of device; use --device cpu, or repair that machine"
            return {"error": f"worker 0 is on {kind} and worker {rank} on {theirs}: {rule}"}
    if kind == "cpu":
        return {"backend": "gloo"}
    first = {identity: rank for rank, (_, identity) in reversed(list(enumerate(devices)))}
    if len(first) < len(devices):
        other = next(rank for rank, (_, identity) in enumerate(devices) if first[identity] != rank)
        return {
            "backend": "gloo",
            "note": f"workers {first[devices[other][1]]} and {other} share a GPU ({len(first)} GPUs for {len(devices)} workers): "
            f"all tensors use gloo and host memory; {len(first)} workers, each with its own GPU, would use "
            f"{dist.get_default_backend_for_device(kind)}",
        }
    return {"backend": f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"}


def backend_of(device: torch.device, group: Any = None) -> str | None:
    """Name of a process group's backend for tensors of a device; None if it has none."""
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return next((backend for kind, _, backend in pairs if kind == device.type), None)


def cpu_group() -> Any:
    """A process group of all ranks for CPU tensors with gloo, which can receive from any source. All ranks call this.

    Returns:
        None, the default group, if it uses gloo for the CPU; else a new group.
    """
    return None if backend_of(CPU) == "gloo" else dist.new_group(backend="gloo")


def _agree_on_backend(store: Any, rank: int, world_size: int, device: torch.device, timeout: timedelta) -> dict[str, str]:
    """Gather the devices of all ranks in the store; rank 0 chooses the backends."""
    store.set(f"{rank}", json.dumps([device.type, identity_of(device)]))
    if rank == 0:
        ranks = [f"{r}" for r in range(world_size)]
        store.wait(ranks, timeout)
        store.set("decided", json.dumps(choose_backend([tuple(json.loads(store.get(r))) for r in ranks])))
    store.wait(["decided"], timeout)
    decided: dict[str, str] = json.loads(store.get("decided"))
    if "error" in decided:
        store.set(f"heard by {rank}", "")
        if rank == 0:
            store.wait([f"heard by {r}" for r in range(world_size)], timedelta(seconds=ACK_TIMEOUT_S))
    return decided
