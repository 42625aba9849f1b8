"""Checkpoints of a model that is spread over the workers: each worker writes its own shards, while training goes on.

`last.pt` then holds all but the shards: it names a folder of files below `shards`, with their sizes and checksums. It is written last, so
that until then the earlier `last.pt`, with its own folder, is the checkpoint. What no checkpoint names is deleted.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.distributed import tensor as sharded
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import Diverged, Interrupted, UserError

if TYPE_CHECKING:
    from bigbatch.comm.shard_files import ShardWriter

SHARDS = "shards"
"""Folder beside a run's checkpoints."""


def take_out_shards(
    model_state: dict[str, Any], optimizer_state: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, DTensor]]:
    """Part two states into what every worker has, and what is spread over them, by name; the first holds None in its places."""
    shards: dict[str, DTensor] = {}

    def common(name: str, value: Any) -> Any:
        if isinstance(value, DTensor):
            shards[name] = value
            return None
        return value

    model = {name: common(f"model.{name}", value) for name, value in model_state.items()}
    state = {
        number: {name: common(f"optimizer.{number}.{name}", value) for name, value in of_one.items()}
        for number, of_one in optimizer_state["state"].items()
    }
    return model, {**optimizer_state, "state": state}, shards


def save_shards(path: Path | None, shards: dict[str, DTensor], write: Callable[[dict[str, Any]], None], *, writer: "ShardWriter") -> None:
    """Begin to write shards; `writer.wait()` waits for the end. Called by every worker.

    Args:
        path: Of the checkpoint; None on other workers than the first.
        shards: From `take_out_shards`.
        write: Called by the first worker in the end: writes the checkpoint, given what it must hold to find its shards.
        writer: Of the run.

    Raises:
        UserError: On every worker, if an earlier checkpoint could not be written.
    """
    chosen = None if path is None else str(path.absolute().parent / SHARDS / f"{path.stem}.{uuid4().hex[:8]}").encode()
    folder = Path(writer.ranks.broadcast_from_rank_0(chosen).decode())
    tensors = {name: (tuple(t.shape), t.dtype, _sharded_dim(t)) for name, t in shards.items()}

    def commit(files: dict[str, tuple[int, int]]) -> None:
        write({"folder": folder.name, "files": files, "tensors": tensors})

    writer.begin(folder, shards, commit, path=path or folder)


def put_in_shards(
    path: Path, state: dict[str, Any], ranks: Ranks = SINGLE_PROCESS, *, mesh: DeviceMesh | None = None, model_only: bool = False
) -> None:
    """Read shards into a checkpoint's state. Called by every worker.

    Args:
        path: Of the checkpoint.
        state: What it holds; changed in place. One without shards is left as it is.
        ranks: The workers.
        mesh: Over which the model is spread: each worker reads its own part, as a DTensor; None reads whole tensors.
        model_only: Whether to leave the optimizer's state out.

    Raises:
        CheckpointError: On every worker, if files are missing or damaged.
    """
    if "shards" not in state:
        return
    from bigbatch.comm.shard_files import check_files, read_tensors

    folder, files = path.parent / SHARDS / state["shards"]["folder"], state["shards"]["files"]
    check_files(folder, files, ranks)
    tensors: dict[str, Tensor] = {}
    for name, (shape, dtype, dim) in state["shards"]["tensors"].items():
        if name.startswith("model.") or not model_only:
            tensors[name] = (
                torch.empty(shape, dtype=dtype, device=ranks.device)
                if mesh is None
                else sharded.empty(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(dim)])
            )
    ranks.run_on_all_ranks(lambda: read_tensors(folder, tensors))
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            state["model"][rest] = value
        else:
            number, _, rest = rest.partition(".")
            state["optimizer"]["state"][int(number)][rest] = value


@contextmanager
def all_saved(comm: Comm) -> Iterator[None]:
    """At the end of a run, however it comes, wait for a checkpoint that is still being written; not where workers are lost.

    Raises:
        UserError: On every worker, if it can't be written.
    """
    writer = comm.writer if isinstance(comm, FullyShard) else None
    if writer is None:
        yield
        return
    try:
        yield
    except Interrupted:
        writer.wait()  # what can't be written is the news then
        raise
    except (Diverged, UserError):
        with suppress(UserError):
            writer.wait()
        raise
    writer.wait()
    writer.close()


def remove_shards(path: Path, *, but: str | None) -> None:
    """Delete the shards of earlier checkpoints of a name.

    Args:
        path: Of the checkpoint.
        but: Name of the folder to leave; None for none.
    """
    for folder in (path.parent / SHARDS).glob(f"{path.stem}.*"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        (path.parent / SHARDS).rmdir()  # if that was all


def _sharded_dim(tensor: DTensor) -> int:
    (placement,) = tensor.placements
    assert isinstance(placement, Shard), f"{placement}: fully_shard shards"
    return placement.dim
