"""The training loop, whole in view.

Its order is its documentation: choose the batch, run the micro-batches, measure, clip, set the rate, step, record, and now and then
evaluate and save. Under torchrun every worker runs this same loop on its share of each update.
"""

import math
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigbatch.comm.ranks import process_group
from bigbatch.core.checks import Diverged, Interrupted
from bigbatch.core.version import __version__
from bigbatch.noise.weight_distance import WeightDistance, is_due
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.control.build import build_batch_control, check_batch_control
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.stream import idle_batch, open_stream
from bigbatch.train.display.progress import Display
from bigbatch.train.measure.curvature_probe import CurvatureProbe
from bigbatch.train.measure.diagnose import check_weights, explain_divergence
from bigbatch.train.measure.evaluate import Evaluation, evaluate
from bigbatch.train.parameter_server.dispatch import with_parameter_server
from bigbatch.train.setup.build import build_comm, build_model, build_optimizer, choose_micro_batch, seed_everything, told_groups
from bigbatch.train.state.agreed_flags import Pulse
from bigbatch.train.state.checkpoint import Progress, kept_name, load_batch_state, load_checkpoint, save_checkpoint
from bigbatch.train.state.folder import keep_recipe, load_data, open_together, owned_by_first
from bigbatch.train.state.interrupt import Stopwatch, how_to_resume, interruptible
from bigbatch.train.state.record import Record
from bigbatch.train.state.result import Result, conclude
from bigbatch.train.state.sharded_checkpoint import all_saved
from bigbatch.train.update.adversarial_training import build_passes, make_examples, paired
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients
from bigbatch.train.update.recomputed_statistics import build_statistics

PULSE_S = 0.25
"""Seconds, about, between two looks at what only one worker knows, and between two readings of losses from the device."""


@with_parameter_server
def fit(
    task: Task | str,
    recipe: Recipe | None = None,
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
    compile: bool = False,
    measure_noise: bool | Literal["layers"] = False,
    measure_distance: bool = False,
    keep_checkpoints: bool = False,
    target: float | None = None,
) -> Result:
    """Train a task by a recipe and measure it on the test set, once, with the final weights.

    Started by torchrun (or `bigbatch train --workers`), it is one worker of several: each update's samples are shared out, and the result
    is that of one worker to rounding.

    Args:
        task: A task, or its name (see `bigbatch tasks`, or `module:Class`).
        recipe: What to run; the task's named recipe if left out.
        out: Folder for `record.jsonl`, TensorBoard events, `last.pt`, `best.pt` (by validation), `recipe.toml` and `result.json`,
            and `shards` of a model that is spread over workers; None writes nothing.
        resume: Continue the run in `out`; it ends in the same weights, bit for bit, as one that was never stopped, with what
            `bigbatch.core.arithmetic` names unchanged; what differs is warned about. A finished run's result is returned as it is.
        evaluate_every: Epochs between evaluations on the validation set; the last update is always followed by one.
        measure_test: Whether to use the test set at the end; False while settings are being chosen (its scores are then NaN).
        save_every_s: Least seconds between two checkpoints; 0 saves after every update.
        quiet: Show no progress.
        tensorboard: Whether to write TensorBoard events into `out`.
        device: A torch device; a GPU of each worker's own if there is one, else the CPU.
        title: What the progress display calls the run.
        compile: Train through `torch.compile`; rounds otherwise, so resume with the same.
        measure_noise: Whether to record signal and noise of every update's gradient, cut into four micro-batches at least; "layers":
            of each layer too. Changes weights by the rounding of that cut, and not at all where updates are cut so anyway.
        measure_distance: Whether to record how far the weights are from their start, at updates evenly spaced on a logarithmic axis.
        keep_checkpoints: Whether to keep a checkpoint of every evaluation in `out`, `update-*.pt`: so much of the disk for each.
        target: End after the first evaluation whose validation score reaches it.

    Returns:
        The result.

    Raises:
        UserError: If the task, recipe, data, checkpoint or folder can't be used.
        Diverged: If the loss or the weights stop being finite; the record and the last good checkpoint are kept.
        Interrupted: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved.
    """
    task = load_task(task) if isinstance(task, str) else task
    recipe = recipe or Recipe.named(task.name)
    with process_group(device=device) as everyone, owned_by_first(out, everyone, resume=resume), paired(recipe, everyone) as (ranks, pair):
        if pair is not None and pair.remote is None:
            return make_examples(task, recipe, ranks, pair)
        asked = resume
        folder, resume, finished = open_together(out, recipe, resume=resume, ranks=ranks)
        if finished is not None:
            return finished
        ranks.check_identical({"recipe": recipe.to_toml(), "version of torch": torch.__version__, "version of bigbatch": __version__})
        ranks.run_on_all_ranks(lambda: check_batch_control(recipe, measure=measure_noise, world_size=ranks.world_size))
        data = ranks.run_on_all_ranks(lambda: load_data(task, recipe, ranks))
        seed_everything(recipe.seed)
        model = ranks.run_on_all_ranks(lambda: build_model(task, recipe, ranks.device)).train()
        comm = ranks.run_on_all_ranks(lambda: build_comm(model, recipe, ranks))
        passes = ranks.run_on_all_ranks(lambda: build_passes(task, recipe, comm, data.train, pair=pair, quiet=quiet))
        optimizer = ranks.run_on_all_ranks(lambda: build_optimizer(model, recipe, comm))
        walked = WeightDistance(model) if measure_distance else None  # before a checkpoint is read
        if not ranks.is_rank_0:
            seed_everything(recipe.seed, ranks.rank)  # dropout of its own; everything else is the same everywhere
        if out is not None and resume:
            progress = load_checkpoint(Path(out) / "last.pt", recipe=recipe, comm=comm, optimizer=optimizer, held=passes)
        else:
            progress = Progress(micro_batch=choose_micro_batch(task, recipe, model, data.train, ranks))

        clock, best_score, micro_batch, reached = progress.clock, progress.best_score, progress.micro_batch, progress.reached
        total, watch = recipe.total_samples, Stopwatch(progress.train_s)
        statistics = build_statistics(comm, recipe, data.train, micro_batch)

        def save(name: str) -> None:
            if out is not None:
                control.take()
                state = Progress(clock, micro_batch, best_score, watch.seconds, control.state_dict(), reached)
                with comm.averaged_weights(optimizer), statistics.whole():
                    check_weights(model, clock)
                    save_checkpoint(folder and folder / name, recipe=recipe, comm=comm, optimizer=optimizer, progress=state, held=passes)

        def measure(split: str) -> Evaluation:
            with comm.averaged_weights(optimizer), statistics.whole():
                result = evaluate(model, task, getattr(data, split), recipe=recipe, ranks=ranks, equal_num_passes=comm.equal_num_passes)
            record.evaluation(clock, split, result, comm.metrics())
            return result

        forward: nn.Module = torch.compile(comm.forward) if compile else comm.forward  # type: ignore[assignment]

        def add_gradients(pieces: Iterable[MicroBatch | Pass], *, divisor: float, idle: int) -> Tensor:
            hooks: dict[str, Any] = {"device": ranks.device, "sync_context": comm.sync_context, "passed": control.passed}
            return accumulate_gradients(forward, task, pieces, divisor=divisor, idle=idle, precision=recipe.precision, **hooks)

        record = Record(folder, clock, tensorboard=tensorboard, ranks=ranks)
        probe = partial(CurvatureProbe, task, recipe, comm, optimizer, data.train, statistics, micro_batch=micro_batch)
        control = build_batch_control(recipe, comm, optimizer, record, measure=measure_noise, probe=probe)
        ranks.run_on_all_ranks(lambda: load_batch_state(f"{out}/last.pt", control, progress.batch, clock))
        passes.follow(control.adversarial_share, statistics)
        if resume and not asked and ranks.is_rank_0:
            print(f"{title or task.name}: goes on after update {clock.updates:,} with {ranks.world_size} workers", file=sys.stderr)
        start, quiet = control.position(clock), quiet or not ranks.is_rank_0
        show = Display(title or task.name, total=total, start=start, epoch=recipe.num_train_samples, quiet=quiet)
        try:
            with interruptible(out) as interrupt, all_saved(comm), show:
                ranks.run_on_all_ranks(lambda: keep_recipe(folder, recipe))
                ranks.run_on_all_ranks(record.open)
                if not record.begun:
                    groups = told_groups(model, recipe, title=title or task.name, quiet=quiet)
                    record.start(recipe, task=task.name, micro_batch=micro_batch, workers=everyone.world_size, groups=groups)
                if clock.updates == 0:
                    save("last.pt")
                work = control.work(micro_batch, equal_num_passes=comm.equal_num_passes)
                read = partial(open_stream, recipe, data.train, ranks=ranks, work=work)
                stream = read(begin := passes.begin(clock, work), control.ahead(begin))
                if ranks.world_size > 1:
                    with comm.warmup_pass():
                        add_gradients([idle_batch(recipe, data.train, ranks.device)], divisor=1.0, idle=1)
                    optimizer.zero_grad()
                    control.forget()
                validation: Evaluation | None = None
                pulse = Pulse(ranks, every_s=min(PULSE_S, save_every_s))
                last_saved = time.monotonic()
                watch = Stopwatch(progress.train_s)
                control.resumed()
                while control.position(clock) < total and not reached:
                    decision = control.before_update(clock)
                    if decision is not None:
                        record.batch(clock, *decision[:3])
                        if decision.after != decision.before:
                            show.decided(*decision[:3])
                            stream = stream if decision.foreseen else read(clock, control.ahead(clock))
                    num_samples = control.num_samples(clock)
                    share = (own := work(num_samples)).share
                    of_update = passes.of_update(stream, clock, num_samples, own)
                    with statistics.of_update(share, adversarial=passes.share(clock) > 0):
                        sum_loss = add_gradients(of_update, divisor=comm.divisor(num_samples, share.num_samples), idle=own.idle)
                    control.measure()
                    if recipe.optimizer.clip_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
                    set_lr(optimizer, control.factor(clock))
                    comm.before_step(optimizer)
                    optimizer.step()
                    optimizer.zero_grad()
                    comm.after_step(optimizer, clock.updates + 1)

                    before, clock = clock, clock.after(num_samples)
                    lr = optimizer.param_groups[0]["lr"]
                    record.update(clock, sum_loss, lr=lr, num_samples=num_samples)
                    control.after_update(clock, num_samples, lr, sum_loss)
                    show.say(control.news())
                    if walked is not None and is_due(clock.updates):
                        record.weight_distance(clock, walked.now())

                    done = control.position(clock) >= total
                    if done or clock.crossed(before, evaluate_every * recipe.num_train_samples):
                        with watch.paused():
                            validation = measure("validation")
                            show.evaluated(f"{task.metric} {100 * validation.score:.2f} %")
                            if validation.score > best_score:
                                best_score = validation.score
                                save("best.pt")
                            if keep_checkpoints:
                                save(kept_name(clock))
                            reached = target is not None and validation.score >= target
                            control.resumed()
                    show.update(control.position(clock), loss=record.last_loss)
                    beat = pulse.beat(interrupted=interrupt.is_set(), save=time.monotonic() - last_saved >= save_every_s)
                    if beat is not None:
                        control.take()
                        record.flush()
                    if beat is not None and not (done or reached) and (beat.interrupted or beat.save):
                        with watch.paused():
                            save("last.pt")
                            last_saved = time.monotonic()
                            control.resumed()
                        if beat.interrupted:
                            raise Interrupted(how_to_resume(clock, out))

                control.take()
                train_s = watch.seconds - control.curvature_s
                comm.average_weights(optimizer)
                save("last.pt")
                if validation is None:  # resumed after the last update
                    validation = measure("validation")
                test = measure("test") if measure_test else Evaluation(math.nan, math.nan, 0)
            facts: dict[str, Any] = {"train_s": train_s, "micro_batch": micro_batch, "reached": reached, "curvature_s": control.curvature_s}
            result = Result(task.name, clock.updates, clock.samples, best_validation_score=best_score, **facts)
            return conclude(result, record, clock, folder, test=test, validation=validation)
        except Diverged as error:
            raise Diverged(explain_divergence(error, recipe, data.train, folder), update=error.update) from None
        finally:
            record.close()
