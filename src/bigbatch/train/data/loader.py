"""From sample indices to micro-batches on the device: from its own memory, from the host's, or through a DataLoader."""

import multiprocessing
import pickle
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from multiprocessing.process import current_process
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from bigbatch.core.checks import UserError
from bigbatch.core.environment import read_variable
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.hardware.devices import free_bytes, num_devices
from bigbatch.core.tensors.alignment import aligned
from bigbatch.core.tensors.structure import describe, map_tensors, tensors_of
from bigbatch.tasks.optional_parts import Collated
from bigbatch.train.data.stream_reader import StreamReader, is_stream

MicroBatch = tuple[Any, Any]
"""Inputs and targets of n samples: tensors, or structures of them, see `bigbatch.core.tensors.structure`."""
SHARE = 0.25
"""Of a GPU's free memory, that a data set may take; where workers share the GPU, of all of them together."""


def load_micro_batches(
    dataset: Dataset[Any], batches: Iterable[Tensor], *, device: torch.device, dtype: torch.dtype
) -> Iterator[MicroBatch]:
    """Micro-batches of a data set.

    Args:
        dataset: A `TensorDataset` is gathered from memory: of the GPU, where it is moved once if it fits into a quarter of what is free
            there, else of the host. A stream is read in order, by this process. Any other map-style data set, and one with a task's
            `collate`, goes through a DataLoader with worker processes; for a GPU, and in any thread but the main one, these are no
            forks of this process, so the data set must pickle. A pair is inputs and targets; a batch of any other items is both.
        batches: Index tensors, one per micro-batch; read ahead of need by a DataLoader, and by one for a GPU.
        device: Where the micro-batches are wanted. Copies to a GPU run beside its work, from pinned memory.
        dtype: Of floating-point inputs; for a GPU they are converted there, unless that would take more of its memory.

    Yields:
        (inputs, targets) in the order of `batches`; on a CPU inputs begin at 64 bytes, see `bigbatch.core.tensors.alignment`.

    Raises:
        UserError: If processes that load data can't be given the data set, or end; or if `collate` gives no pair.
    """
    if not isinstance(dataset, TensorDataset):
        loaded = _read_in_order(dataset, batches) if is_stream(dataset) else _load(dataset, batches, device)
        return (_converted_pair(pair, dtype) for pair in (_copied_ahead(loaded, device) if device.type != "cpu" else loaded))
    tensors = dataset.tensors
    if device.type == "cpu":
        return (_converted_pair(_pair_of([t[index] for t in tensors]), dtype) for index in batches)
    if (held := _on_device(dataset, device, dtype)) is not None:
        there = (_pinned(index).to(device, non_blocking=True) for index in batches)
        return (_converted_pair(_pair_of([t[index] for t in held.tensors]), dtype) for index in there)
    gathered = (_pair_of([_gathered(t, index) for t in tensors]) for index in batches)
    return (_converted_pair(pair, dtype) for pair in _copied_ahead(gathered, device))


def collated(dataset: Any, index: Tensor, *, device: torch.device, dtype: torch.dtype) -> MicroBatch:
    """One micro-batch of a data set that is not in memory, made in this process and put where it is wanted."""
    ahead = device.type != "cpu"  # to the CPU, values would be read before they are there
    batch = _Collate(dataset)([dataset[i] for i in index.tolist()])
    return _converted_pair(_each_once(lambda t: t.to(device, non_blocking=ahead), _opened(batch)), dtype)


class _Both(NamedTuple):
    """A batch that is inputs and targets at once; pinned and sent once."""

    item: Any


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _opened(batch: Any) -> MicroBatch:
    if isinstance(batch, _Both):
        return batch.item, batch.item
    if not _is_pair(batch):
        raise UserError(f"the task's collate(samples) returned {describe(batch)}: must be a pair; return (inputs, targets)")
    return batch[0], batch[1]


def _pair_of(parts: list[Tensor]) -> MicroBatch:
    """Inputs and targets of a data set's two tensors; of another number, all are both."""
    return (parts[0], parts[1]) if len(parts) == 2 else (both := parts[0] if len(parts) == 1 else tuple(parts), both)


def _each_once(function: Callable[[Tensor], Tensor], pair: MicroBatch) -> MicroBatch:
    """Both parts with `function` applied to their tensors, once where they are the same."""
    inputs, targets = pair
    changed = map_tensors(function, inputs)
    return changed, changed if targets is inputs else map_tensors(function, targets)


class _Collate:
    """Makes a batch of a list of samples, by the task's `collate` or torch's; in the processes that load."""

    def __init__(self, dataset: Any) -> None:
        self.collate = dataset.collate if isinstance(dataset, Collated) else None

    def __call__(self, samples: list[Any]) -> Any:
        if self.collate is None:
            batch = default_collate(samples)
            return batch if _is_pair(samples[0]) else _Both(batch)
        batch = self.collate(samples)
        return _Both(batch[0]) if _is_pair(batch) and batch[0] is batch[1] else batch


def refuse_in_a_loader() -> None:
    """Refuse to train in a process that is there to load data: it imports the script that has started it.

    Raises:
        UserError: With the remedy.
    """
    if getattr(current_process(), "_inheriting", False):
        raise UserError('a process that loads data came to train: put what your script does below `if __name__ == "__main__":`')


def num_loaders() -> int:
    """Processes that load data for this worker: half of the cores, shared by the workers of this machine, and one at least."""
    return max(1, usable_cores() // (2 * int(read_variable("LOCAL_WORLD_SIZE", 1))))


class _Held(NamedTuple):
    """A data set on a device."""

    tensors: tuple[Tensor, ...]  # inputs and targets
    versions: list[tuple[int, int]]  # of the tensors that it was copied from


_held: "WeakKeyDictionary[TensorDataset, dict[tuple[torch.device, torch.dtype], _Held]]" = WeakKeyDictionary()


def _on_device(dataset: TensorDataset, device: torch.device, dtype: torch.dtype) -> _Held | None:
    """A data set on a device, moved there once for as long as there is the data set; None if it does not fit.

    Changed in place, it is moved anew.
    """
    versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in dataset.tensors]
    known = _held.setdefault(dataset, {})
    if (device, dtype) in known and known[device, dtype].versions == versions:
        return known[device, dtype]
    known.pop((device, dtype), None)
    tensors = dataset.tensors
    inputs = tensors[:1] if len(tensors) == 2 else tensors
    size = sum(t.numel() * t.element_size() for t in tensors)
    sharing = -(-int(read_variable("LOCAL_WORLD_SIZE", 1)) // max(num_devices(device.type), 1))
    if tensors[0].device != device and size > SHARE * (free_bytes(device) or 0) / sharing:
        return None
    moved = [t.to(device, dtype if t.is_floating_point() and dtype.itemsize < t.dtype.itemsize else t.dtype) for t in inputs]
    known[device, dtype] = _Held((*moved, *(t.to(device) for t in tensors[len(inputs) :])), versions)
    return known[device, dtype]


def _converted_pair(pair: MicroBatch, dtype: torch.dtype) -> MicroBatch:
    """Floating-point inputs as `dtype`; targets as they are, unless they are the inputs."""
    inputs, targets = pair
    converted = map_tensors(lambda t: _converted(t, dtype), inputs)
    return converted, converted if targets is inputs else targets


def _converted(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    converted = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return aligned(converted) if converted.device.type == "cpu" else converted


def _pins() -> bool:
    """Whether the host has memory from which a GPU copies by itself."""
    return torch.accelerator.is_available()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if _pins() else tensor


def _gathered(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, of the host in pinned memory."""
    if tensor.device.type != "cpu":
        return tensor[index]
    rows = torch.empty((len(index), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=_pins())
    return torch.index_select(tensor, 0, index, out=rows)


def _copied_ahead(batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Micro-batches on a GPU, each copied while the one before is computed with: on a stream of its own."""
    stream = torch.Stream(device) if _pins() else None
    ahead: deque[tuple[MicroBatch, torch.Event | None]] = deque()

    def next_one() -> MicroBatch:
        batch, copied = ahead.popleft()
        if copied is not None:
            now = torch.accelerator.current_stream(device)
            now.wait_event(copied)
            for tensor in tensors_of(batch):
                tensor.record_stream(now)  # its memory is not given to a later copy before this stream is done with it
        return batch

    for pair in batches:
        with stream if stream is not None else nullcontext():
            batch = _each_once(lambda t: t.to(device, non_blocking=True), pair)
        ahead.append((batch, stream.record_event() if stream is not None else None))
        if len(ahead) > 1:
            yield next_one()
    while ahead:
        yield next_one()


def _load(dataset: Dataset[Any], batches: Iterable[Tensor], device: torch.device) -> Iterator[MicroBatch]:
    """Micro-batches on the host, by a DataLoader.

    Processes that are forked after CUDA or NCCL was used may hang, and so they do if another thread is drawing from torch's generator,
    whose lock they then wait for; forks of a fresh process, which has only imported torch, don't.
    """
    context: Any = None
    if device.type != "cpu" or threading.current_thread() is not threading.main_thread():
        context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
        context.set_forkserver_preload([__name__])
    collate = _Collate(dataset)
    dataset = dataset.dataset if isinstance(dataset, Collated) else dataset
    chance = torch.Generator()
    chance.set_state(torch.get_rng_state())  # of which a DataLoader draws the seeds of its processes: a resumed run must not draw once more
    settings: dict[str, Any] = {
        "collate_fn": collate,
        "generator": chance,
        "prefetch_factor": 2,
        "pin_memory": device.type != "cpu" and _pins(),
        "multiprocessing_context": context,
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # which is explained below
            loaded = iter(DataLoader(dataset, batch_sampler=_Lists(batches), num_workers=num_loaders(), **settings))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        for name, part in ((f"data set {type(dataset).__name__}", dataset), ("the task's collate", collate)):
            try:
                ForkingPickler.dumps(part)
            except Exception as why:  # whatever its parts raise
                raise UserError(
                    f"{name}: can't be handed to the processes that load it ({' '.join(str(why).split())[:150]}); "
                    "define its class in a module, keep lambdas and open files out of it, or give a TensorDataset"
                ) from None
        raise error
    try:
        for batch in loaded:
            yield _opened(batch)
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
            raise UserError(f"data set {type(dataset).__name__}: a process that loads it ended; what it printed says why") from error
        if unlike := re.search(r"stack expects each tensor to be equal size, but got (.*)", str(error)):
            raise UserError(
                f"data set {type(dataset).__name__}: samples have unlike shapes ({unlike[1]}); give the task a collate(samples)"
            ) from error
        raise


def _read_in_order(dataset: Dataset[Any], batches: Iterable[Tensor]) -> Iterator[MicroBatch]:
    reader, collate = StreamReader(dataset), _Collate(dataset)
    for index in batches:
        yield _opened(collate(reader.read(index)))


class _Lists:
    """A batch sampler over index tensors."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.batches)
