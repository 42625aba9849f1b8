"""The run of a parameter server: the trainer's own loop, with gradients that workers send in the place of its own.

Workers run `bigbatch.train.parameter_server.worker`. The record, the checkpoints and the result are those of any other run; a server that
was killed resumes from `last.pt`.
"""

import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.comm.parameter_server.backup_workers import num_gradients
from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.section import ParameterServerSection
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.shard_client import ShardClient
from bigbatch.comm.parameter_server.work_queue import WorkQueue, even_split
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks, process_group
from bigbatch.core.clock import Clock
from bigbatch.core.environment import timeout_s
from bigbatch.core.metric import metric_of
from bigbatch.recipe import Recipe
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.tasks.task import Task
from bigbatch.train.control.batch_source import BatchSource
from bigbatch.train.control.control import Control
from bigbatch.train.control.rate_source import RateSource
from bigbatch.train.data.shares import check_shares, share_of
from bigbatch.train.loop import train
from bigbatch.train.parameter_server.shard_servers import ShardedParameters
from bigbatch.train.parameter_server.step import Apply, add_running_statistics, build_server_optimizer, build_step
from bigbatch.train.parameter_server.worker import batch_norm_buffers, describe_job, refuse_stream
from bigbatch.train.run import POLL_S, Options, Run
from bigbatch.train.setup.build import build_model, choose_micro_batch, seed_everything
from bigbatch.train.state.checkpoint import Progress, load_batch_state, load_checkpoint
from bigbatch.train.state.folder import load_data, lock_on_rank_0, open_folder_on_rank_0
from bigbatch.train.state.record import Record
from bigbatch.train.state.result import Result
from bigbatch.train.update.batches import UpdateBatches
from bigbatch.train.update.running_statistics import RunningStatistics


def run_server(task: Task, recipe: Recipe, role: ProcessRole, options: Options) -> Result:
    """The first server's part of `fit`: the trainer's own loop, with gradients of workers.

    Returns:
        The result, which workers receive too.

    Raises:
        UserError: If the task, recipe, data, checkpoint, folder or address is invalid.
        Diverged: If the loss or the weights stop being finite.
        Interrupted: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved.
    """
    with process_group(device=options.device) as ranks, lock_on_rank_0(options.out, ranks, resume=options.resume):
        folder, resumes, finished = open_folder_on_rank_0(options.out, recipe, resume=options.resume, ranks=ranks)
        if finished is not None:
            return finished
        result: Result | None = None
        serving = set_up(task, recipe, role, options, ranks, folder=folder, resumes=resumes)
        try:
            if resumes and not options.resume:
                serving.print_line(f"{serving.run.title}: the server resumes after update {serving.run.clock.updates:,}")
            result = train(serving.run)
            return result
        finally:
            serving.server.finish({"result": result and result.to_json()})
            if isinstance(serving.run.comm, ShardedParameters):
                serving.run.comm.shards.end()


@dataclass
class Serving:
    """What a server's run has besides, and its part of the loop.

    Attributes:
        server: Gives weights to workers, and takes their gradients.
        apply: An update, from the gradients in `p.grad`.
        run: Whose loop calls `begin` and `update`.
    """

    server: ParameterServer
    apply: Apply
    run: Run = field(init=False)

    def begin(self, run: Run) -> None:
        """Give other servers what they need."""
        if isinstance(run.comm, ShardedParameters):
            run.comm.begin(run.optimizer, self.server.queue)

    def update(self, run: Run) -> None:
        """Wait a moment for the gradients of an update, and apply them."""
        update = self.server.collect(timeout_s=POLL_S)
        if update is None:
            return
        lr = self.apply(run.clock, update.damping, len(update.work_items))
        add_running_statistics(run.model, update.extras)
        self.server.publish()
        run.clock = run.clock.after(update.num_samples)
        run.record.update(run.clock, torch.tensor(update.sum_loss, dtype=torch.float64), lr=lr, num_samples=update.num_samples)

    def record_staleness(self) -> None:
        """How late the gradients so far were."""
        self.run.record.staleness(self.run.clock, self.server.queue.histogram)

    def end_facts(self) -> dict[str, Any]:
        """For the last line of the record."""
        queue, comm = self.server.queue, self.run.comm
        return {
            "staleness": {str(tau): count for tau, count in sorted(queue.histogram.items())},
            "staleness_bound": queue.staleness_bound,
            "refused": dict(queue.refused),
            "applied": queue.applied_ranges,
            **(self.server.traffic + comm.traffic if isinstance(comm, ShardedParameters) else self.server.traffic),
        }

    def print_line(self, text: str) -> None:
        """Print a line for people."""
        if not self.run.quiet:
            print(text, file=sys.stderr, flush=True)


class ServedControl(Control):
    """What the next update is, where workers compute ahead: the ledger shares it out.

    Args:
        recipe: Of the run.
        server: With its ledger.
    """

    def __init__(self, recipe: Recipe, server: ParameterServer) -> None:
        total = recipe.total_samples
        super().__init__(BatchSource(recipe.batch.global_batch), RateSource(schedule_of(recipe), total), total)
        self._server = server

    def is_over(self, clock: Clock) -> bool:  # noqa: ARG002
        """Whether all samples were applied."""
        return self._server.queue.done

    def state_dict(self) -> dict[str, Any]:
        """What a server that was killed continues from."""
        return {**super().state_dict(), "ledger": self._server.queue.state_dict(), "traffic": dict(self._server.traffic)}


def set_up(task: Task, recipe: Recipe, role: ProcessRole, options: Options, ranks: Ranks, *, folder: Path | None, resumes: bool) -> Serving:
    """Build all that a server's run is made of, and take up its checkpoint if it is resumed.

    Raises:
        UserError: If the task, recipe, data, checkpoint or address can't be used.
    """
    data = load_data(task, recipe, ranks)
    refuse_stream(task, data.train)
    seed_everything(recipe.seed)
    model = build_model(task, recipe, ranks.device).train()
    optimizer, queue = build_server_optimizer(model, recipe), build_work_queue(recipe, role.num_workers)
    apply = build_step(recipe, model, optimizer)
    shards = _shard_client(role, recipe, model) if len(role.server_addresses) > 1 else None
    comm = Comm(model, ranks) if shards is None else ShardedParameters(model, ranks, shards)
    if folder is not None and resumes:
        progress = load_checkpoint(folder / "last.pt", recipe=recipe, comm=comm, optimizer=optimizer)
        clock = progress.clock
        unbroken = {"version": clock.updates, "samples": clock.samples, "applied": [[0, clock.samples]] if clock.samples else []}
        load_batch_state(folder / "last.pt", queue, progress.batch.get("ledger", NEW_QUEUE | unbroken), clock)
    else:
        progress = Progress(micro_batch=choose_micro_batch(task, recipe, model, data.train, ranks))
    local = build_local_updates(recipe, role.num_workers)
    metadata = {"micro_batch": progress.micro_batch, "local_updates": list(local) if local is not None else None}
    server = _open(role, recipe, model, queue, shards, metadata)
    server.traffic.update(progress.batch.get("traffic", {}))
    serving = Serving(server, apply)
    serving.run = Run(
        task=task,
        recipe=recipe,
        options=options,
        ranks=ranks,
        folder=folder,
        data=data,
        model=model,
        comm=comm,
        optimizer=optimizer,
        statistics=RunningStatistics(model, ranks),
        batches=UpdateBatches(recipe),
        control=ServedControl(recipe, server),
        record=Record(folder, progress.clock, tensorboard=options.tensorboard, ranks=ranks, metric=metric_of(task.metric)),
        progress=progress,
        update=serving.update,
        begin=serving.begin,
        after_evaluation=serving.record_staleness,
        end_facts=serving.end_facts,
        start_facts={"workers": role.num_workers, "bit_for_bit": _reproducible(recipe)},
        notice="" if _reproducible(recipe) else _warning(recipe),
    )
    return serving


NEW_QUEUE: dict[str, Any] = {"version": 0, "samples": 0, "cursor": 0, "waiting": [], "applied": [], "histogram": {}, "refused": {}}


def build_work_queue(recipe: Recipe, num_workers: int) -> WorkQueue:
    """Who computes what, as the recipe has it.

    Raises:
        RecipeError: If an update cannot be split into that many gradients.
    """
    c, ghost_batch = recipe.comm, recipe.batch.ghost_batch
    assert isinstance(c, ParameterServerSection)
    synchronous, local = c.mode == "synchronous", build_local_updates(recipe, num_workers)
    gradients = gradients_per_update(c, num_workers)
    check_shares(recipe.batch.global_batch, gradients if local is None else num_workers, ghost_batch)

    def split(num_samples: int, parts: int) -> list[int]:
        if local is not None and num_samples == local.update_samples:  # local updates of equally many samples
            return even_split(num_samples, parts)
        return [share_of(num_samples, i, parts, ghost_batch).num_samples for i in range(parts)]

    return WorkQueue(
        total_samples=recipe.total_samples,
        global_batch=recipe.batch.global_batch if local is None else local.update_samples,
        gradients_per_update=gradients,
        staleness_bound=0 if synchronous else c.staleness_bound or DEFAULT_STALENESS_BOUND,
        backup_workers=c.backup_workers,
        split=split,
        nonce=secrets.randbits(32),
        timeout_s=timeout_s(),
    )


DEFAULT_STALENESS_BOUND = 16
"""Default staleness bound."""


def gradients_per_update(c: ParameterServerSection, num_workers: int) -> int:
    """M: gradients, or displacements of local steps, in one update."""
    waits = c.mode == "synchronous" or c.backup_workers > 0
    return c.gradients_per_update or (num_gradients(num_workers, c.backup_workers) if waits else 1)


def build_local_updates(recipe: Recipe, num_workers: int) -> LocalUpdates | None:
    """How work items are cut into local updates of `global_batch / num_workers` samples; None if workers push gradients."""
    c = recipe.comm
    assert isinstance(c, ParameterServerSection)
    if not c.has_outer_optimizer:
        return None
    return LocalUpdates(recipe.batch.global_batch // num_workers, c.period, gradients_per_update(c, num_workers))


def _open(
    role: ProcessRole, recipe: Recipe, model: nn.Module, queue: WorkQueue, shards: ShardClient | None, metadata: dict[str, Any]
) -> ParameterServer:
    assert isinstance(recipe.comm, ParameterServerSection)
    return ParameterServer(
        list(model.parameters()),
        queue,
        token=role.token,
        address=role.server_addresses[0],
        extras=batch_norm_buffers(model),
        job=describe_job(recipe),
        metadata=metadata,
        reduction=recipe.comm.reduction,
        damping=recipe.comm.damping,
        shards=shards,
    )


def _shard_client(role: ProcessRole, recipe: Recipe, model: nn.Module) -> ShardClient:
    settings: dict[str, Any] = {
        "token": role.token,
        "extras": batch_norm_buffers(model),
        "job": describe_job(recipe),
        "timeout_s": timeout_s(),
    }
    return ShardClient(list(model.parameters()), role.server_addresses, **settings)


def _reproducible(recipe: Recipe) -> bool:
    """Whether the run is reproducible bit for bit. With local steps a worker's optimizer may have a state, and who computes what counts."""
    c = recipe.comm
    assert isinstance(c, ParameterServerSection)
    stateless = not c.has_outer_optimizer or (recipe.optimizer.name == "sgd" and not getattr(recipe.optimizer, "momentum", 0.0))
    return c.mode == "synchronous" and not c.backup_workers and stateless


def _warning(recipe: Recipe) -> str:
    """Warning of a run that is not reproducible bit for bit."""
    c = recipe.comm
    assert isinstance(c, ParameterServerSection)
    if c.mode == "synchronous" and not c.backup_workers:
        return "a worker's optimizer remembers its own local steps, and which worker takes which is chance: not reproducible bit for bit"
    momenta = {"momentum": getattr(recipe.optimizer, "momentum", 0.0), "outer_momentum": c.outer_momentum}
    momenta = {name: value for name, value in momenta.items() if value}
    text = "updates depend on which gradient arrives first: not reproducible bit for bit"
    if c.mode == "asynchronous" and momenta and c.damping == "none":
        found, which = " and ".join(f"{name} = {value}" for name, value in momenta.items()), " and ".join(momenta)
        text += f"; staleness adds to {found}: if it diverges, set {which} to 0, or set comm.damping (studies/staleness)"
    return text
