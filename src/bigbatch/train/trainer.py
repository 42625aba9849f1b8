"""`bigbatch.fit`: train a task by a recipe, on one worker or as one of many."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.ranks import Ranks, process_group
from bigbatch.core.metric import metric_of
from bigbatch.core.version import __version__
from bigbatch.noise.weight_distance import WeightDistance
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.adversarial.training import Pair, build_update_batches, make_examples, paired
from bigbatch.train.control.build import build_control, check_control
from bigbatch.train.data.loader import refuse_in_a_loader
from bigbatch.train.data.shares import partition
from bigbatch.train.loop import begin, train, update
from bigbatch.train.measure.curvature_probe import CurvatureProbe
from bigbatch.train.parameter_server.dispatch import refuse_gaps, refuse_local_steps_alone, take_part
from bigbatch.train.run import Options, Run
from bigbatch.train.setup.build import build_comm, build_model, build_optimizer, choose_micro_batch, seed_everything
from bigbatch.train.state.checkpoint import HasState, Progress, load_batch_state, load_checkpoint
from bigbatch.train.state.folder import load_data, lock_on_rank_0, open_folder_on_rank_0
from bigbatch.train.state.record import Record
from bigbatch.train.state.result import Result
from bigbatch.train.update.recomputed_statistics import build_statistics


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
    tensorboard: bool | None = None,
    device: str | torch.device | None = None,
    title: str | None = None,
    compile: bool = False,
    measure_noise: bool | Literal["layers", "norms"] = False,
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
            `bigbatch.core.hardware.arithmetic` names unchanged; what differs is warned about. A finished run's result is returned as it is.
        evaluate_every: Epochs between evaluations on the validation set; the last update is always followed by one.
        measure_test: Whether to use the test set at the end; False while settings are being chosen (its scores are then NaN).
        save_every_s: Least seconds between two checkpoints; 0 saves after every update.
        quiet: Show no progress.
        tensorboard: Whether to write TensorBoard events into `out`; None does so where TensorBoard is installed.
        device: A torch device; a GPU of each worker's own if there is one, else the CPU.
        title: What the progress display calls the run.
        compile: Train through `torch.compile`; rounds otherwise, so resume with the same.
        measure_noise: Whether to record signal and noise of every update's gradient, cut into four micro-batches at least; "layers":
            of each layer too; "norms": of the norm layers alone, see `bigbatch.noise.norm_layers`. Changes weights by the rounding of that
            cut, and not at all where updates are cut so anyway.
        measure_distance: Whether to record how far the weights are from their start, at updates evenly spaced on a logarithmic axis.
        keep_checkpoints: Whether to keep a checkpoint of every evaluation in `out`, `update-*.pt`: so much of the disk for each.
        target: End after the first evaluation whose validation score is as good, or better: not below it, or not above where the task's
            metric says that lower is better.

    Returns:
        The result.

    Raises:
        UserError: If the task, recipe, data, checkpoint or folder can't be used.
        Diverged: If the loss or the weights stop being finite; the record and the last good checkpoint are kept.
        Interrupted: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved.
    """
    options = Options(
        out=out,
        resume=resume,
        save_every_s=save_every_s,
        keep_checkpoints=keep_checkpoints,
        tensorboard=tensorboard,
        evaluate_every=evaluate_every,
        measure_test=measure_test,
        target=target,
        measure_noise=measure_noise,
        measure_distance=measure_distance,
        device=device,
        compile=compile,
        quiet=quiet,
        title=title,
    )
    return fit_with(load_task(task) if isinstance(task, str) else task, recipe, options)


def fit_with(task: Task, recipe: Recipe | None, options: Options) -> Result:
    """`fit`, its keywords as one value."""
    refuse_in_a_loader()
    recipe, out = recipe or Recipe.named(task.name), options.out
    if (role := ProcessRole.from_environment()) is not None:
        return take_part(task, recipe, role, options)
    refuse_local_steps_alone(recipe)
    refuse_gaps(recipe, out if options.resume else None)
    with (
        process_group(device=options.device) as everyone,
        lock_on_rank_0(out, everyone, resume=options.resume),
        paired(recipe, everyone) as (ranks, pair),
    ):
        if pair is not None and pair.remote is None:
            return make_examples(task, recipe, ranks, pair)
        folder, resumes, finished = open_folder_on_rank_0(out, recipe, resume=options.resume, ranks=ranks)
        if finished is not None:
            return finished
        checkpoint = Path(out) / "last.pt" if resumes and out is not None else None
        run = set_up(task, recipe, options, ranks, folder=folder, checkpoint=checkpoint, pair=pair)
        run.start_facts["workers"] = everyone.world_size
        if resumes and not options.resume and ranks.is_rank_0:
            print(f"{run.title}: resumes after update {run.clock.updates:,} with {ranks.world_size} workers", file=sys.stderr)
        return train(run)


def set_up(
    task: Task,
    recipe: Recipe,
    options: Options,
    ranks: Ranks,
    *,
    folder: Path | None = None,
    checkpoint: Path | None = None,
    of_recipe: Recipe | None = None,
    pair: Pair | None = None,
) -> Run:
    """Build all that a run is made of, and take up a checkpoint if there is one. Called by every worker.

    Args:
        task: What is trained.
        recipe: Of the run.
        options: Of the run.
        ranks: The workers that train.
        folder: Of the run; None on workers that write nothing.
        checkpoint: To continue from; None at a run's beginning.
        of_recipe: That the checkpoint is of; the run's own if left out.
        pair: The rank that makes adversarial examples for this one, if there is one.

    Raises:
        UserError: If the task, recipe, data or checkpoint can't be used.
    """
    on_all = ranks.run_on_all_ranks
    ranks.check_identical({"recipe": recipe.to_toml(), "version of torch": torch.__version__, "version of bigbatch": __version__})
    on_all(lambda: check_control(recipe, measure=options.measure_noise, world_size=ranks.world_size))
    data = on_all(lambda: load_data(task, recipe, ranks))
    seed_everything(recipe.seed)
    model = on_all(lambda: build_model(task, recipe, ranks.device)).train()
    comm = on_all(lambda: build_comm(model, recipe, ranks))
    batches = on_all(lambda: build_update_batches(task, recipe, comm, data.train, pair=pair, quiet=options.quiet))
    optimizer = on_all(lambda: build_optimizer(model, recipe, comm))
    distance = WeightDistance(model) if options.measure_distance else None  # from the weights before a checkpoint is read
    if not ranks.is_rank_0:
        seed_everything(recipe.seed, ranks.rank)  # dropout of its own; everything else is the same everywhere
    statistics = build_statistics(comm, recipe, data.train, task)
    if checkpoint is not None:
        per_worker: dict[str, HasState] = {"held": batches, "statistics": statistics}
        progress = load_checkpoint(checkpoint, recipe=of_recipe or recipe, comm=comm, optimizer=optimizer, per_worker=per_worker)
    else:
        progress = Progress(micro_batch=choose_micro_batch(task, recipe, model, data.train, ranks))
    statistics.micro_batch = progress.micro_batch
    record = Record(folder, progress.clock, tensorboard=options.tensorboard, ranks=ranks, metric=metric_of(task.metric))
    probe = partial(CurvatureProbe, task, recipe, comm, optimizer, data.train, statistics, micro_batch=progress.micro_batch)
    control = build_control(recipe, comm, optimizer, record, measure=options.measure_noise, probe=probe)
    on_all(lambda: load_batch_state(checkpoint, control, progress.batch, progress.clock))
    batches.follow(control.batch.adversarial_share, statistics)
    parts: dict[str, Any] = {"model": model, "comm": comm, "optimizer": optimizer, "statistics": statistics, "batches": batches}
    run = Run(
        task=task,
        recipe=recipe,
        options=options,
        ranks=ranks,
        folder=folder,
        data=data,
        control=control,
        record=record,
        progress=progress,
        update=update,
        begin=begin,
        distance=distance,
        **parts,
    )
    cut: dict[str, Any] = {
        "micro_batch": progress.micro_batch,
        "ghost_batch": recipe.batch.ghost_batch,
        "equal_num_passes": comm.equal_num_passes,
    }
    run.work = partition(ranks.rank, ranks.world_size, num_groups=control.noise.num_groups if control.noise is not None else None, **cut)
    return run
