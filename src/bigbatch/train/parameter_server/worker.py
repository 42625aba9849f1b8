"""What a worker of a parameter server does: pull, run the micro-batches of its piece, push."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.work_queue import WorkItem
from bigbatch.comm.ranks import process_group
from bigbatch.core.environment import LAUNCHER, timeout_s
from bigbatch.core.signals import STOPS
from bigbatch.core.version import __version__
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import MicroBatch, load_micro_batches, move
from bigbatch.train.data.micro_batch import micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.setup.build import build_model, seed_everything
from bigbatch.train.state.result import Result
from bigbatch.train.update.gradient_accumulation import accumulate_gradients


def describe_job(recipe: Recipe) -> str:
    """What all processes of a run must have in common."""
    return f"{recipe.to_toml()}\n{torch.__version__}\n{__version__}"


def ignore_stop_signals() -> None:
    """For processes that a launcher started: a terminal's and Slurm's signals reach all, and the first server decides what they mean."""
    if LAUNCHER in os.environ and threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if number != signal.SIGTERM:  # which is for one process
                signal.signal(number, signal.SIG_IGN)


def batch_norm_buffers(model: nn.Module) -> list[Tensor]:
    """Running means, variances and counts of a model's batch norms: what a worker sends along, having started from zero."""
    norms = [m for m in batch_norms(model).values() if m.track_running_stats]
    return [buffer for m in norms for buffer in (m.running_mean, m.running_var, m.num_batches_tracked) if buffer is not None]


def run_worker(task: Task, recipe: Recipe, role: ProcessRole, *, device: str | torch.device | None = None, compile: bool = False) -> Result:
    """Compute gradients until the server says that the run has ended.

    Random numbers (dropout) are drawn anew for each piece, from the seed and the piece's place in the run: who computes it changes nothing.

    Returns:
        The run's result, as the server told it; one without scores if the run did not end well.

    Raises:
        UserError: If the server refuses this worker.
        LostWorkers: If the server stays away.
    """
    ignore_stop_signals()
    with process_group(device=device) as ranks:
        seed_everything(recipe.seed)
        model = build_model(task, recipe, ranks.device).train()
        forward: nn.Module = torch.compile(model) if compile else model  # type: ignore[assignment]
        buffers, train = batch_norm_buffers(model), task.splits().train
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
            while (work := client.pull()) is not None:
                for buffer in buffers:
                    buffer.zero_()
                seed_everything(recipe.seed, 1 + work.start)
                pieces = _read(recipe, train, work, micro_batch, ranks.device)
                sum_loss = accumulate_gradients(
                    forward, task, pieces, divisor=work.num_samples, precision=recipe.precision, device=ranks.device
                )
                client.push(work, sum_loss)
            told = client.outcome.get("result")
        return Result.from_json(told) if told else Result(task.name, updates=0, samples=0)


@contextlib.contextmanager
def _leave_on_interrupt(client: ParameterClient) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        client.leave()
        raise


def _read(recipe: Recipe, train: object, work: WorkItem, micro_batch: int, device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches of a piece. A data set that is not in memory is read right here: what comes next is not known ahead."""
    sizes = micro_batches(work.num_samples, micro_batch, recipe.batch.ghost_batch)
    batches = index_batches(recipe.seed, recipe.num_train_samples, work.start, iter(sizes))
    if isinstance(train, TensorDataset):
        yield from load_micro_batches(train, batches, device=device, dtype=DTYPES[recipe.precision])
        return
    for index in batches:
        inputs, targets = default_collate([train[i] for i in index.tolist()])  # type: ignore[index]
        yield move(inputs, targets, device=device, dtype=DTYPES[recipe.precision])
