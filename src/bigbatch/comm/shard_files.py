"""Files of sharded tensors: each rank writes its own shards in the background, and reads what it needs.

torch.distributed.checkpoint writes them as safetensors files, which hold no code, and reads them with any number of ranks.
"""

import dataclasses
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import CheckpointError, Elsewhere, OutputError, UserError
from bigbatch.core.storage.writing import remedy_for, sync_folder

FILE_BYTES = 256e6
"""Approximate size of a file, which is assembled in memory before it is written, and read and checked as a whole."""

Files = dict[str, tuple[int, int]]
"""Size in bytes and CRC-32 of each file, by name."""


class ShardWriter:
    """Writes the shards of all ranks into a folder while training continues; one folder at a time.

    Shards are staged in host memory first; the next write uses the same memory again.

    Args:
        ranks: The workers. All ranks call each method, in the same order; the folder must be on a disk that all of them share.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._group: Any = None
        self._stager: DefaultStager | None = None
        self._pending: tuple[Future[Any], Path, Path] | None = None

    def begin(self, folder: Path, tensors: Mapping[str, DTensor], commit: Callable[[Files], None], *, path: Path) -> None:
        """Stage the shards and start to write them; waits for an earlier write first.

        Args:
            folder: Folder to create, on a disk that all ranks share.
            tensors: The tensors, by name.
            commit: Called on rank 0 once the files of all ranks are on the disk.
            path: Path of the file that `commit` writes, for messages.

        Raises:
            UserError: As in `wait`, for the earlier write.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo")  # a separate group: training communicates at the same time, perhaps by NCCL
            pinned = self.ranks.device.type == "cuda"
            self._stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        writer = SafetensorsWriter(folder, tensors, self.ranks.world_size, commit)
        future = async_save(dict(tensors), storage_writer=writer, process_group=self._group, async_stager=self._stager)
        assert isinstance(future, Future)
        self._pending = future, folder, path

    @property
    def writing(self) -> bool:
        """Whether this rank or another one still writes."""
        return self._pending is not None and not self._pending[0].done()

    def wait(self) -> None:
        """Wait until the current write is complete.

        Raises:
            UserError: On every rank, if it failed; the incomplete folder is deleted.
        """
        if self._pending is None:
            return
        (future, folder, path), self._pending = self._pending, None
        try:
            future.result()
        except CheckpointException as error:
            if self.ranks.is_rank_0:
                shutil.rmtree(folder, ignore_errors=True)
            rank, (reason, _) = min(error.failures.items())
            if isinstance(reason, OSError):
                kept = "the earlier checkpoint is intact" if path.exists() else "nothing was written"
                reason = OutputError(f"can't write {path} (shards of worker {rank}): {reason.strerror}; {kept}; {remedy_for(reason)}")
            if isinstance(reason, UserError) and not self.ranks.is_rank_0:
                raise Elsewhere(str(reason)) from None
            raise reason from None

    def close(self) -> None:
        """Free the staging memory and destroy the process group; a later write makes new ones."""
        if self._stager is not None:
            self._stager.close()
            dist.destroy_process_group(self._group)
        self._group = self._stager = None


class SafetensorsWriter(HuggingFaceStorageWriter):
    """torch's writer of safetensors files, with checksums and a final commit.

    Args:
        folder: Folder to create.
        tensors: The tensors to write, by name.
        world_size: Number of ranks.
        commit: Called on rank 0 once all files are on the disk.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, DTensor], world_size: int, commit: Callable[[Files], None]) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=_assign_files(tensors, world_size), save_distributed=True)
        self.folder, self.commit = folder, commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this rank's shards; the results hold the size and checksum of each file."""
        results = super().write_data(plan, planner).value()
        files = {name: size_and_checksum(self.folder / name) for name in {result.storage_data.relative_path for result in results}}
        sync_folder(self.folder)
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        names = [result.storage_data.relative_path for result in results]
        done.set_result([dataclasses.replace(r, storage_data=(name, *files[name])) for r, name in zip(results, names, strict=True)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002
        """Check and commit the files; called on rank 0 once all ranks have written."""
        files = {name: (size, checksum) for each in results for name, size, checksum in (result.storage_data for result in each)}
        for name, (size, _) in files.items():
            if not (path := self.folder / name).exists() or path.stat().st_size != size:
                raise OutputError(
                    f"{path}: was written by another worker, but worker 0 cannot see it; give an --out on a disk that all workers share"
                )
        sync_folder(self.folder.parent)
        self.commit(files)


def check_files(folder: Path, files: Mapping[str, tuple[int, int]], ranks: Ranks) -> None:
    """Check that no file is missing or damaged; each rank reads some of the files.

    Raises:
        CheckpointError: On every rank, if one is.
    """

    def check() -> None:
        for name, (size, checksum) in sorted(files.items())[ranks.rank :: ranks.world_size]:
            try:
                found = size_and_checksum(folder / name)
            except OSError as error:
                raise CheckpointError(f"checkpoint {folder / name}: {error.strerror}; resume from a copy or start a new run") from None
            if found != (size, checksum):
                raise CheckpointError(
                    f"checkpoint {folder / name}: is truncated or damaged (wrong checksum); resume from a copy or start a new run"
                )
        others = {path.name for path in folder.glob("*.safetensors")} - files.keys()
        if others:
            raise CheckpointError(f"checkpoint {folder / min(others)}: does not belong to this checkpoint; move the file elsewhere")

    ranks.run_on_all_ranks(check)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read tensors in place, full or sharded in any way, from files that `check_files` has checked.

    Raises:
        CheckpointError: If the files do not hold these tensors.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        reader.read_metadata()  # separately: `load` would log a traceback
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each rank reads on its own
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # safetensors and torch raise several unrelated kinds
        cause = error.failures[0][0] if isinstance(error, CheckpointException) else error
        reason = " ".join(str(cause).split())[:200]
        raise CheckpointError(
            f"checkpoint {folder}: does not hold the expected tensors ({reason}); resume from a copy or start a new run"
        ) from None


def size_and_checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, checksum


def _assign_files(tensors: Mapping[str, DTensor], world_size: int) -> dict[str, int]:
    """The file index of each tensor, from 1; files are filled in the order of the tensors."""
    numbers: dict[str, int] = {}
    number, filled = 1, 0.0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() / world_size
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0.0
        numbers[name], filled = number, filled + size
    return numbers
