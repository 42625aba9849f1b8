"""Tensors that are spread over the workers, as files: each worker writes its own shards, in the background, and reads what it needs.

torch.distributed.checkpoint writes them as safetensors files, which hold no code, and puts them together for any number of workers.
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
from bigbatch.core.files import sync_folder

FILE_BYTES = 256e6
"""Bytes of a file, about: a file is put together in memory before it is written, and its tensors are read and checked as a whole."""

Files = dict[str, tuple[int, int]]
"""Bytes and CRC-32 of each file, by its name."""


class ShardWriter:
    """Writes the shards of all workers into a folder while training goes on; one folder at a time.

    Shards are copied to the host's memory first, once more than they take on the device; the copy is used again by the next writing.

    Args:
        ranks: The workers. All of them call each method, in the same order; all must see the folder, on a disk that they share.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._group: Any = None
        self._stager: DefaultStager | None = None
        self._pending: tuple[Future[Any], Path, Path] | None = None

    def begin(self, folder: Path, tensors: Mapping[str, DTensor], commit: Callable[[Files], None], *, path: Path) -> None:
        """Copy the shards, and begin to write them; waits for an earlier writing first.

        Args:
            folder: To be made; on one disk for all workers.
            tensors: By name.
            commit: Called by the first worker once the files of all are on the disk.
            path: Of what `commit` writes, for messages.

        Raises:
            UserError: As `wait`, of the earlier writing.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo")  # its own: exchanges of training go on meanwhile, perhaps between GPUs
            pinned = self.ranks.device.type == "cuda"
            self._stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        writer = SafetensorsWriter(folder, tensors, self.ranks.world_size, commit)
        future = async_save(dict(tensors), storage_writer=writer, process_group=self._group, async_stager=self._stager)
        assert isinstance(future, Future)
        self._pending = future, folder, path

    @property
    def writing(self) -> bool:
        """Whether this worker still writes, or waits for others that do."""
        return self._pending is not None and not self._pending[0].done()

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            UserError: On every worker, if it could not be; what had been written of it is deleted.
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
                reason = OutputError(
                    f"can't write {path} (shards of worker {rank}): {reason.strerror}; {kept}; free some space, then continue with --resume"
                )
            if isinstance(reason, UserError) and not self.ranks.is_rank_0:
                raise Elsewhere(str(reason)) from None
            raise reason from None

    def close(self) -> None:
        """Let go of the copy and of the connections to the other workers; a later writing makes them anew."""
        if self._stager is not None:
            self._stager.close()
            dist.destroy_process_group(self._group)
        self._group = self._stager = None


class SafetensorsWriter(HuggingFaceStorageWriter):
    """torch's writer of safetensors files, with checksums, and with a last step of our own.

    Args:
        folder: To be made.
        tensors: What will be written.
        world_size: Number of workers.
        commit: Called on the first worker once all files are on the disk.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, DTensor], world_size: int, commit: Callable[[Files], None]) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=_assign_files(tensors, world_size), save_distributed=True)
        self.folder, self.commit = folder, commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this worker's shards; the results tell size and checksum of each file."""
        results = super().write_data(plan, planner).value()
        files = {name: size_and_checksum(self.folder / name) for name in {result.storage_data.relative_path for result in results}}
        sync_folder(self.folder)
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        names = [result.storage_data.relative_path for result in results]
        done.set_result([dataclasses.replace(r, storage_data=(name, *files[name])) for r, name in zip(results, names, strict=True)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002
        """On the first worker, once all have written."""
        files = {name: (size, checksum) for each in results for name, size, checksum in (result.storage_data for result in each)}
        for name, (size, _) in files.items():
            if not (path := self.folder / name).exists() or path.stat().st_size != size:
                raise OutputError(
                    f"{path}: was written by another worker and is not seen by the first; give an --out that all workers share"
                )
        sync_folder(self.folder.parent)
        self.commit(files)


def check_files(folder: Path, files: Mapping[str, tuple[int, int]], ranks: Ranks) -> None:
    """Refuse files that are missing or damaged; each worker reads some of them.

    Raises:
        CheckpointError: On every worker.
    """

    def check() -> None:
        for name, (size, checksum) in sorted(files.items())[ranks.rank :: ranks.world_size]:
            try:
                found = size_and_checksum(folder / name)
            except OSError as error:
                raise CheckpointError(f"checkpoint {folder / name}: {error.strerror}; resume from a copy or start anew") from None
            if found != (size, checksum):
                raise CheckpointError(
                    f"checkpoint {folder / name}: is truncated or damaged (wrong checksum); resume from a copy or start anew"
                )
        others = {path.name for path in folder.glob("*.safetensors")} - files.keys()
        if others:
            raise CheckpointError(f"checkpoint {folder / min(others)}: does not belong to it; move that file elsewhere")

    ranks.run_on_all_ranks(check)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded in any way, by what was written. Checked files only.

    Raises:
        CheckpointError: If they don't hold these tensors.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        reader.read_metadata()  # first by itself: `load` would log a traceback
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each worker reads by itself
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # safetensors and torch raise several unrelated kinds
        cause = error.failures[0][0] if isinstance(error, CheckpointException) else error
        reason = " ".join(str(cause).split())[:200]
        raise CheckpointError(f"checkpoint {folder}: does not hold what it should ({reason}); resume from a copy or start anew") from None


def size_and_checksum(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum


def _assign_files(tensors: Mapping[str, DTensor], world_size: int) -> dict[str, int]:
    """Number of the file for each tensor, from 1, of each worker's; filled in their order."""
    numbers: dict[str, int] = {}
    number, filled = 1, 0.0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() / world_size
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0.0
        numbers[name], filled = number, filled + size
    return numbers
