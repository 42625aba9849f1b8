"""The training loop of a worker of a parameter server: pull, compute the gradient of the work item or take local steps, push."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.comm.ranks import process_group
from bigbatch.core.checks import UserError
from bigbatch.core.environment import LAUNCHER, timeout_s
from bigbatch.core.signals import STOPS
from bigbatch.core.version import __version__
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import collated, load_micro_batches
from bigbatch.train.data.micro_batch import micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.data.stream_reader import is_stream
from bigbatch.train.parameter_server.local_steps import LocalSteps
from bigbatch.train.setup.build import build_model, seed_everything
from bigbatch.train.state.result import Result
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients


def describe_job(recipe: Recipe) -> str:
    """The description of the job, which must be the same in all processes."""
    return f"{recipe.to_toml()}\n{torch.__version__}\n{__version__}"


def refuse_stream(task: Task, train: Any) -> None:
    """Refuse training data that can only be read in order.

    Raises:
        UserError: With the remedy.
    """
    if is_stream(train):
        raise UserError(
            f"task {task.name}: a stream with a parameter server: workers take samples in any order, and a stream has one; set comm.kind = "
            '"all_reduce", or give a map-style data set'
        )


def ignore_stop_signals() -> None:
    """In processes with a launcher: a terminal's and Slurm's signals reach all processes, and the first server handles them."""
    if LAUNCHER in os.environ and threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if number != signal.SIGTERM:  # which is sent to a single process
                signal.signal(number, signal.SIG_IGN)


def batch_norm_buffers(model: nn.Module) -> list[Tensor]:
    """Running means, variances and counts of the batch norms, which a worker sends with each gradient, computed from zero."""
    norms = [m for m in batch_norms(model).values() if m.track_running_stats]
    return [buffer for m in norms for buffer in (m.running_mean, m.running_var, m.num_batches_tracked) if buffer is not None]


def run_worker(task: Task, recipe: Recipe, role: ProcessRole, *, device: str | torch.device | None = None, compile: bool = False) -> Result:
    """Compute gradients, or take local steps, until the run ends.

    Each work item seeds the random number generators (dropout) from the run's seed and its first sample, so the gradient does not depend on
    which worker computes it. With local steps, how far they go depends on this worker's optimizer, if that has a state.

    Returns:
        The run's result, from the server; without scores if the run failed.

    Raises:
        UserError: If the server refuses this worker.
        LostWorkers: If the server cannot be reached.
    """
    ignore_stop_signals()
    with process_group(device=device) as ranks:
        seed_everything(recipe.seed)
        model = build_model(task, recipe, ranks.device).train()
        forward: nn.Module = torch.compile(model) if compile else model  # type: ignore[assignment]
        buffers, train = batch_norm_buffers(model), splits_of(task).train
        refuse_stream(task, train)
        client = ParameterClient(
            role.server_addresses,
            role.token,
            list(model.parameters()),
            worker=role.rank,
            extras=buffers,
            job=describe_job(recipe),
            timeout_s=timeout_s(),
        )
        with client, _leave_on_interrupt(client):
            micro_batch = int(client.metadata["micro_batch"])

            def gradient(work: WorkItem) -> Tensor:
                batches = _passes(recipe, train, work, micro_batch, ranks.device)
                return accumulate_gradients(
                    forward, task, batches, divisor=work.num_samples, precision=recipe.precision, device=ranks.device
                )

            cut = client.metadata["local_updates"]
            local = LocalSteps(recipe, model, LocalUpdates(*cut), gradient) if cut is not None else None
            while (work := client.pull()) is not None:
                for buffer in buffers:
                    buffer.zero_()
                seed_everything(recipe.seed, 1 + work.start)
                if local is None:
                    client.push(work, gradient(work))
                else:
                    client.push(work, *local.take(work))
            result = client.outcome.get("result")
        return Result.from_json(result) if result else Result(task.name, updates=0, samples=0)


@contextlib.contextmanager
def _leave_on_interrupt(client: ParameterClient) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        client.leave()
        raise


def _passes(recipe: Recipe, train: object, work: WorkItem, micro_batch: int, device: torch.device) -> Iterator[Pass]:
    """The passes of a work item. A data set that is not in memory is not prefetched: the next item is not known."""
    sizes = micro_batches(work.num_samples, micro_batch, recipe.batch.ghost_batch)
    batches = index_batches(recipe.seed, recipe.num_train_samples, work.start, iter(sizes))
    where: dict[str, Any] = {"device": device, "dtype": DTYPES[recipe.precision]}
    if isinstance(train, TensorDataset):
        pairs = load_micro_batches(train, batches, **where)
    else:
        pairs = (collated(train, index, **where) for index in batches)
    for (inputs, targets), size in zip(pairs, sizes, strict=True):
        yield Pass(inputs, targets, num_samples=size)
