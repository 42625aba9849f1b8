"""Exchanges beside the computation: in a thread on the CPU, on a stream of their own on a GPU, in a process group of their own.

Meanwhile the caller may use the default process group. Collectives of one group must be in the same order on all ranks, which two threads
cannot promise; so the exchanges need another group.
"""

from collections.abc import Callable
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


class Background:
    """Runs exchanges in the order in which they were started, one at a time.

    All ranks must construct their instances in the same order, and start the same exchanges in the same order. Before `torch.distributed`
    is initialised, or in a single process, there is no group; the first exchange that finds several ranks makes it.
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None
        self._thread: futures.ThreadPoolExecutor | None = None
        self._last: futures.Future[None] | None = None
        self._stream: Any = None
        self._make_group()

    @property
    def world_size(self) -> int:
        """Number of ranks that exchange."""
        return 1 if self.group is None else self.group.size()

    def submit(self, work: Callable[[], Tensor], device: torch.device) -> Future[Tensor]:
        """Start an exchange; the caller may go on computing, and wait for the result later.

        Args:
            work: Makes the exchange and returns its result; without gradients.
            device: Of the tensors. On the CPU, `work` runs in the thread. On another device it runs here, which only queues it there; on a
                CUDA device in a stream of its own.

        Returns:
            The result. If `work` raised in the thread, `wait` raises RuntimeError with the error's type and message.
        """
        self._make_group()
        future: Future[Tensor]
        if device.type == "cpu":
            self._thread = self._thread or futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange")
            future = Future()
            self._last = self._thread.submit(_run, work, future)
            return future.then(_value)  # DistributedDataParallel takes an exception in a future for a result, but not one of a callback
        future = Future(devices=[device])
        with self._own_stream(device), torch.no_grad():
            future.set_result(work())  # notes an event of this stream; the stream of who waits will wait for it
        return future

    def flush(self) -> None:
        """Wait until all exchanges that were started are over, also those that failed."""
        if self._last is not None:
            futures.wait([self._last])
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def all_to_all(self, rows: Tensor) -> Tensor:
        """Send row i to rank i; row i of the result is what rank i sent. In `work` only."""
        if self.group is None:
            return rows
        received = torch.empty_like(rows)
        dist.all_to_all_single(received, rows.contiguous(), group=self.group)
        return received

    def all_gather(self, row: Tensor) -> Tensor:
        """Send a flat tensor to all ranks; row i of the result is what rank i sent. In `work` only."""
        if self.group is None:
            return row[None]
        received = row.new_empty(self.world_size * row.numel())
        _all_gather(received, row.contiguous(), group=self.group)
        return received.view(self.world_size, -1)

    def _own_stream(self, device: torch.device) -> AbstractContextManager[object]:
        if device.type != "cuda":
            return nullcontext()
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(self._stream)

    def _make_group(self) -> None:
        if self.group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group()


def used_here(tensor: Tensor) -> Tensor:
    """Keep the memory of a tensor that another CUDA stream allocated until the current stream has read it. In `work` only."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def sum_in_order(rows: Tensor) -> Tensor:
    """The sum of the rows, from the first one on: the same bits on every rank.

    >>> sum_in_order(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([4., 6.])
    """
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def _run(work: Callable[[], Tensor], future: Future[Tensor]) -> None:
    try:
        with torch.no_grad():
            result = work()
    except Exception as error:
        future.set_exception(error)  # type: ignore[arg-type]
    else:
        future.set_result(result)


def _value(done: Future[Tensor]) -> Tensor:
    return done.value()
