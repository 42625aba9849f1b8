"""The training loop of the (first) parameter server: the trainer's loop with `collect` before the step and `publish` after it.

Workers run `worker`. The record, the checkpoints and the result are those of any other run; a server that was killed resumes from
`last.pt`.
"""

import math
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.comm.parameter_server.backup_workers import num_gradients
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.shard_client import ShardClient
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import process_group
from bigbatch.core.checks import Diverged, Interrupted
from bigbatch.core.environment import timeout_s
from bigbatch.recipe import Recipe, sections
from bigbatch.tasks.task import Task
from bigbatch.train.data.shares import check_shares, share_of
from bigbatch.train.display.progress import Display
from bigbatch.train.measure.diagnose import check_weights, explain_divergence
from bigbatch.train.measure.evaluate import Evaluation, evaluate
from bigbatch.train.parameter_server.shard_servers import ShardedParameters
from bigbatch.train.parameter_server.step import add_running_statistics, build_step
from bigbatch.train.parameter_server.worker import batch_norm_buffers, describe_job
from bigbatch.train.setup.build import build_model, build_optimizer, choose_micro_batch, seed_everything, told_groups
from bigbatch.train.state.checkpoint import Progress, kept_name, load_batch_state, load_checkpoint, save_checkpoint
from bigbatch.train.state.folder import keep_recipe, load_data, open_together, owned_by_first
from bigbatch.train.state.interrupt import Stopwatch, how_to_resume, interruptible
from bigbatch.train.state.record import Record
from bigbatch.train.state.result import Result, conclude

POLL_S = 0.25
"""Seconds between two checks for a signal to stop and for the time to save."""


def run_server(
    task: Task,
    recipe: Recipe,
    role: ProcessRole,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    evaluate_every: float = 1.0,
    measure_test: bool = True,
    save_every_s: float = 30.0,
    quiet: bool = False,
    tensorboard: bool = True,
    device: str | torch.device | None = None,
    title: str | None = None,
    keep_checkpoints: bool = False,
    target: float | None = None,
) -> Result:
    """Run the server's training loop, with the arguments of `fit`.

    Returns:
        The result, which workers receive too.

    Raises:
        UserError: If the task, recipe, data, checkpoint, folder or address is invalid.
        Diverged: If the loss or the weights stop being finite.
        Interrupted: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved.
    """
    with process_group(device=device) as ranks, owned_by_first(out, ranks, resume=resume):
        resume_requested = resume
        folder, resume, finished = open_together(out, recipe, resume=resume, ranks=ranks)
        if finished is not None:
            return finished
        data = load_data(task, recipe, ranks)
        seed_everything(recipe.seed)
        model = build_model(task, recipe, ranks.device).train()
        optimizer, queue = build_optimizer(model, recipe), build_work_queue(recipe, role.num_workers)
        apply = build_step(recipe, model, optimizer)
        shards = _shard_client(role, recipe, model) if len(role.server_addresses) > 1 else None
        comm = Comm(model, ranks) if shards is None else ShardedParameters(model, ranks, shards)
        if folder is not None and resume:
            progress = load_checkpoint(folder / "last.pt", recipe=recipe, comm=comm, optimizer=optimizer)
            clock = progress.clock
            without_gaps = {"version": clock.updates, "samples": clock.samples, "applied": [[0, clock.samples]] if clock.samples else []}
            load_batch_state(folder / "last.pt", queue, progress.batch.get("ledger", NEW_QUEUE | without_gaps), clock)
        else:
            progress = Progress(micro_batch=choose_micro_batch(task, recipe, model, data.train, ranks))
        clock, best_score, reached = progress.clock, progress.best_score, progress.reached
        total, watch = recipe.total_samples, Stopwatch(progress.train_s)

        def save(name: str) -> None:
            if folder is not None:
                batch = {"global_batch": recipe.batch.global_batch, "ledger": queue.state_dict(), "traffic": dict(server.traffic)}
                state = Progress(clock, progress.micro_batch, best_score, watch.seconds, batch, reached)
                with comm.averaged_weights(optimizer):
                    check_weights(model, clock)
                save_checkpoint(folder / name, recipe=recipe, comm=comm, optimizer=optimizer, progress=state)

        def measure(split: str) -> Evaluation:
            with comm.averaged_weights(optimizer):
                result = evaluate(model, task, getattr(data, split), recipe=recipe, ranks=ranks)
            record.evaluation(clock, split, result)
            record.staleness(clock, queue.histogram)
            return result

        server = _open(role, recipe, model, queue, shards, micro_batch=progress.micro_batch)
        server.traffic.update(progress.batch.get("traffic", {}))
        record = Record(folder, clock, tensorboard=tensorboard, ranks=ranks)
        if resume and not resume_requested:
            _print(quiet, f"{title or task.name}: the server resumes after update {clock.updates:,}")
        result: Result | None = None
        show = Display(title or task.name, total=total, start=clock.samples, epoch=recipe.num_train_samples, quiet=quiet)
        try:
            with interruptible(out) as interrupt, show:
                if isinstance(comm, ShardedParameters):
                    comm.begin(optimizer, queue)
                keep_recipe(folder, recipe)
                record.open()
                if not record.begun:
                    fields: dict[str, Any] = {"micro_batch": progress.micro_batch, "workers": role.num_workers}
                    fields["groups"] = told_groups(model, recipe, title=title or task.name, quiet=quiet)
                    if not _reproducible(recipe):
                        _print(quiet, f"{title or task.name}: {_warning(recipe)}")
                    record.start(recipe, task=task.name, bit_for_bit=_reproducible(recipe), **fields)
                if clock.updates == 0:
                    save("last.pt")
                validation: Evaluation | None = None
                last_poll = last_saved = time.monotonic()
                watch = Stopwatch(progress.train_s)
                while not queue.done and not reached:
                    update = server.collect(timeout_s=POLL_S)
                    before = clock
                    if update is not None:
                        lr = apply(clock, update.damping, len(update.work_items))
                        add_running_statistics(model, update.extras)
                        server.publish()
                        clock = clock.after(update.num_samples)
                        sum_loss = torch.tensor(update.sum_loss, dtype=torch.float64)
                        record.update(clock, sum_loss, lr=lr, num_samples=update.num_samples)
                    if queue.done or clock.crossed(before, evaluate_every * recipe.num_train_samples):
                        with watch.paused():
                            validation = measure("validation")
                            show.evaluated(f"{task.metric} {100 * validation.score:.2f} %")
                            if validation.score > best_score:
                                best_score = validation.score
                                save("best.pt")
                            if keep_checkpoints:
                                save(kept_name(clock))
                            reached = target is not None and validation.score >= target
                    if clock.samples > before.samples:
                        show.update(clock.samples, loss=record.last_loss)
                    now = time.monotonic()
                    if now - last_poll >= min(POLL_S, save_every_s) or interrupt.is_set():
                        last_poll = now
                        record.flush()
                        if not (queue.done or reached) and (interrupt.is_set() or now - last_saved >= save_every_s):
                            with watch.paused():
                                save("last.pt")
                            last_saved = time.monotonic()
                            if interrupt.is_set():
                                raise Interrupted(how_to_resume(clock, out))
                train_s = watch.seconds
                record.flush()
                save("last.pt")
                if validation is None:  # resumed after the last update
                    validation = measure("validation")
                test = measure("test") if measure_test else Evaluation(math.nan, math.nan, 0)
            result = Result(
                task.name,
                clock.updates,
                clock.samples,
                best_validation_score=best_score,
                train_s=train_s,
                micro_batch=progress.micro_batch,
                reached=reached,
            )
            result = conclude(result, record, clock, folder, test=test, validation=validation, **_summary(server, comm))
            return result
        except Diverged as error:
            raise Diverged(explain_divergence(error, recipe, data.train, folder), update=error.update) from None
        finally:
            record.close()
            server.finish({"result": result and result.to_json()})
            if shards is not None:
                shards.end()


NEW_QUEUE: dict[str, Any] = {"version": 0, "samples": 0, "cursor": 0, "waiting": [], "applied": [], "histogram": {}, "refused": {}}


def build_work_queue(recipe: Recipe, num_workers: int) -> WorkQueue:
    """Who computes what, as the recipe has it.

    Raises:
        RecipeError: If an update cannot be split into that many gradients.
    """
    c, ghost_batch = recipe.comm, recipe.batch.ghost_batch
    assert isinstance(c, sections.ParameterServer)
    synchronous = c.mode == "synchronous"
    gradients = c.gradients_per_update or (num_gradients(num_workers, c.backup_workers) if synchronous else 1)
    check_shares(recipe.batch.global_batch, gradients, ghost_batch)

    def split(num_samples: int, parts: int) -> list[int]:
        return [share_of(num_samples, i, parts, ghost_batch).num_samples for i in range(parts)]

    return WorkQueue(
        total_samples=recipe.total_samples,
        global_batch=recipe.batch.global_batch,
        gradients_per_update=gradients,
        staleness_bound=0 if synchronous else c.staleness_bound or DEFAULT_STALENESS_BOUND,
        backup_workers=c.backup_workers,
        split=split,
        nonce=secrets.randbits(32),
        timeout_s=timeout_s(),
    )


DEFAULT_STALENESS_BOUND = 16
"""Default staleness bound."""


def _open(
    role: ProcessRole, recipe: Recipe, model: nn.Module, queue: WorkQueue, shards: ShardClient | None, *, micro_batch: int
) -> ParameterServer:
    assert isinstance(recipe.comm, sections.ParameterServer)
    return ParameterServer(
        list(model.parameters()),
        queue,
        token=role.token,
        address=role.server_addresses[0],
        extras=batch_norm_buffers(model),
        job=describe_job(recipe),
        metadata={"micro_batch": micro_batch},
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
    """Whether the run is reproducible bit for bit."""
    c = recipe.comm
    return isinstance(c, sections.ParameterServer) and c.mode == "synchronous" and not c.backup_workers


def _warning(recipe: Recipe) -> str:
    """Warning of a run that is not reproducible bit for bit."""
    c, momentum = recipe.comm, getattr(recipe.optimizer, "momentum", 0.0)
    text = "updates depend on which gradient arrives first: not reproducible bit for bit"
    if isinstance(c, sections.ParameterServer) and c.mode == "asynchronous" and momentum and c.damping == "none":
        text += f"; staleness adds to momentum = {momentum}: if it diverges, set momentum to 0, or set comm.damping (studies/staleness)"
    return text


def _summary(server: ParameterServer, comm: Comm) -> dict[str, Any]:
    """Fields of the last line of the record."""
    queue = server.queue
    return {
        "staleness": {str(tau): count for tau, count in sorted(queue.histogram.items())},
        "staleness_bound": queue.staleness_bound,
        "refused": dict(queue.refused),
        "applied": queue.applied_ranges,
        **(server.traffic + comm.traffic if isinstance(comm, ShardedParameters) else server.traffic),
    }


def _print(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
