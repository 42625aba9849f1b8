"""The training loop. Under torchrun every worker runs it on its share of each update; so does a parameter server, with its own `update`.

`bigbatch.train.trainer` sets a run up, `train` is the loop, `update` one update, `finish` the end.
"""

import math
import time
from typing import Any

from torch import Tensor, nn

from bigbatch.core.checks import Diverged, Interrupted
from bigbatch.noise.weight_distance import is_due
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.tasks.optional_parts import has_weights
from bigbatch.train.control.batch_source import BatchDecision
from bigbatch.train.data.shares import IDLE_SAMPLES
from bigbatch.train.data.stream import idle_batch, open_stream
from bigbatch.train.measure.diagnose import explain_divergence
from bigbatch.train.measure.evaluate import Evaluation
from bigbatch.train.run import Run
from bigbatch.train.setup.build import describe_parameter_groups
from bigbatch.train.state.checkpoint import numbered_name
from bigbatch.train.state.folder import write_recipe
from bigbatch.train.state.interrupt import how_to_resume, interruptible
from bigbatch.train.state.result import Result, write_result
from bigbatch.train.state.sharded_checkpoint import all_saved
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients
from bigbatch.train.update.weighted_mean import read_weights


def train(run: Run) -> Result:
    """Run the updates of a run that is set up, until its budget is used up or its target reached.

    Raises:
        Diverged: If the loss or the weights stop being finite; the record and the last good checkpoint are kept.
        Interrupted: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved.
    """
    try:
        with interruptible(run.options.out) as interrupt, all_saved(run.comm), run.display:
            open_record(run)
            run.begin(run)
            run.start_timers()
            while not run.is_over:
                before = run.clock
                run.update(run)
                if run.is_over or run.clock.crossed(before, run.options.evaluate_every * run.recipe.num_train_samples):
                    validate(run)
                if run.clock != before:
                    run.display.update(run.control.position(run.clock), loss=run.record.last_loss)

                flags = run.flags.poll(interrupted=interrupt.is_set(), save=run.save_is_due)
                if flags is not None:
                    run.control.read()
                    run.record.flush()
                    if not run.is_over and (flags.interrupted or flags.save):
                        save_last(run)
                        if flags.interrupted:
                            raise Interrupted(how_to_resume(run.clock, run.options.out))
            result, test = finish(run)
        return write_result(result, run.record, run.clock, run.folder, test=test, validation=run.validation or test, **run.end_facts())
    except Diverged as error:
        raise Diverged(explain_divergence(error, run.recipe, run.data.train, run.folder), update=error.update) from None
    finally:
        run.record.close()


def update(run: Run) -> None:
    """One update: decide on its batch, accumulate its gradient, measure and clip it, set the rate, step, record."""
    control, comm, optimizer = run.control, run.comm, run.optimizer
    if (decision := control.before_update(run.clock)) is not None:
        follow(run, decision)
    num_samples = control.num_samples(run.clock)
    sum_loss = gradient(run, num_samples)
    control.after_gradients()
    if run.recipe.optimizer.clip_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.optimizer.clip_norm)
    set_lr(optimizer, control.lr_factor(run.clock))
    comm.before_step(optimizer)
    optimizer.step()
    optimizer.zero_grad()
    comm.after_step(optimizer, run.clock.updates + 1)

    run.clock = run.clock.after(num_samples)
    lr = optimizer.param_groups[0]["lr"]
    run.record.update(run.clock, sum_loss, lr=lr, num_samples=num_samples)
    control.after_update(run.clock, num_samples, lr, sum_loss)
    run.display.print_line(control.message)
    if run.distance is not None and is_due(run.clock.updates):
        run.record.weight_distance(run.clock, run.distance.now())


def finish(run: Run) -> tuple[Result, Evaluation]:
    """After the last update: the same weights everywhere, saved, and their scores.

    Returns:
        The result but for scores, and the evaluation of the test set: NaN if it is not wanted.
    """
    run.control.read()
    run.record.flush()
    train_s = run.stopwatch.seconds - run.control.curvature_s
    run.comm.average_weights(run.optimizer)
    run.save("last.pt")
    if run.validation is None:  # resumed after the last update
        run.validation = run.evaluate("validation")
    test = run.evaluate("test") if run.options.measure_test else Evaluation(math.nan, math.nan, 0)
    facts: dict[str, Any] = {"train_s": train_s, "curvature_s": run.control.curvature_s, "micro_batch": run.micro_batch}
    best = run.best_score if math.isfinite(run.best_score) else math.nan
    result = Result(run.task.name, run.clock.updates, run.clock.samples, best_validation_score=best, reached=run.reached, **facts)
    return result, test


def open_record(run: Run) -> None:
    """Write what a run's folder holds before its first update: the recipe, the first line of the record, a checkpoint."""
    run.ranks.run_on_all_ranks(lambda: write_recipe(run.folder, run.recipe))
    run.ranks.run_on_all_ranks(run.record.open)
    if not run.record.begun:
        if run.notice:
            run.display.print_line(run.notice)
        groups = describe_parameter_groups(run.model, run.recipe, title=run.title, quiet=run.quiet)
        run.record.start(run.recipe, task=run.task.name, micro_batch=run.micro_batch, groups=groups, **run.start_facts)
    if run.clock.updates == 0:
        run.save("last.pt")


def begin(run: Run) -> None:
    """Open the stream of micro-batches; with several workers, settle by a pass that weighs nothing in which order gradients are sent."""
    clock = run.batches.begin(run.clock, run.work)
    run.stream = open_stream(run.recipe, run.data.train, clock, run.control.upcoming(clock), ranks=run.ranks, work=run.work)
    if run.ranks.world_size > 1:
        with run.comm.warmup_pass():
            idle = Pass(*idle_batch(run.recipe, run.data.train, run.ranks.device), num_samples=IDLE_SAMPLES)
            accumulate(run, [idle], divisor=1.0, idle=1)
        run.optimizer.zero_grad()
        run.control.forget_gradients()


def follow(run: Run, decision: BatchDecision) -> None:
    """Record a decision about the batch, and read micro-batches for the new one."""
    run.record.batch(run.clock, decision.before, decision.after, decision.reason)
    if decision.after != decision.before:
        run.display.batch_changed(decision.before, decision.after, decision.reason)
        if not decision.scheduled:
            upcoming = run.control.upcoming(run.clock)
            run.stream = open_stream(run.recipe, run.data.train, run.clock, upcoming, ranks=run.ranks, work=run.work)


def gradient(run: Run, num_samples: int) -> Tensor:
    """Accumulate the mean gradient of an update into `p.grad`.

    Returns:
        This worker's sum of losses, on the device; with weights, relative to the mean weight of the update's samples, so that the sum over
        all workers divided by `num_samples` is the mean loss in both cases.
    """
    own = run.work(num_samples)
    batches, relative = run.batches.of_update(run.stream, run.clock, num_samples, own), 1.0
    local, whole = float(own.share.num_samples), float(num_samples)
    if has_weights(run.task):
        batches, local, whole = read_weights(run.task, batches, idle=own.idle, ranks=run.ranks)
        relative = num_samples / whole
    with run.statistics.during_update(own.share, adversarial=run.batches.share(run.clock) > 0):
        sum_loss = accumulate(run, batches, divisor=run.comm.divisor(whole, local), idle=own.idle)
    return sum_loss if relative == 1.0 else sum_loss * relative


def accumulate(run: Run, batches: Any, *, divisor: float, idle: int) -> Tensor:
    """`accumulate_gradients` of a run."""
    hooks: dict[str, Any] = {"sync_context": run.comm.sync_context, "after_backward": run.control.after_backward}
    where: dict[str, Any] = {"device": run.ranks.device, "precision": run.recipe.precision}
    return accumulate_gradients(run.forward, run.task, batches, divisor=divisor, idle=idle, **hooks, **where)


def validate(run: Run) -> None:
    """Evaluate the validation set; keep the best weights, and see whether the target is reached."""
    with run.stopwatch.paused():
        run.validation = run.evaluate("validation")
        score = run.validation.score
        run.display.show_score(f"{run.metric} {run.metric.text(score)}")
        if run.metric.is_better(score, run.best_score):
            run.best_score = score
            run.save("best.pt")
        if run.options.keep_checkpoints:
            run.save(numbered_name(run.clock))
        run.reached = run.options.target is not None and run.metric.reaches(score, run.options.target)
        run.control.restart_timer()


def save_last(run: Run) -> None:
    """The checkpoint that a resumed run goes on from."""
    with run.stopwatch.paused():
        run.save("last.pt")
        run.last_saved = time.monotonic()
        run.control.restart_timer()
