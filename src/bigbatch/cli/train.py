"""`bigbatch train`: one run."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli import settings as s
from bigbatch.cli.device import Device
from bigbatch.cli.force import Force
from bigbatch.cli.requeue import requeued
from bigbatch.cli.sets import split_sets
from bigbatch.cli.tracking import Track
from bigbatch.cli.values import read_noise_scale
from bigbatch.cli.workers import launch_workers
from bigbatch.core.checks import UserError
from bigbatch.core.environment import number_of_workers, own_rank


def train(
    task: s.TaskName,
    recipe: s.RecipeFile = None,
    global_batch: Annotated[int | None, typer.Option("--global-batch", help="Scale the recipe to this batch first.")] = None,
    rule: s.Rule = "auto",
    sets: s.PlanSets = None,
    data: s.Data = None,
    noise: s.NoiseFile = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the record and checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    save_every_s: Annotated[float, typer.Option("--save-every", help="Least seconds between checkpoints.")] = 30.0,
    keep: Annotated[bool, typer.Option("--keep-checkpoints", help="One of every evaluation, for `bigbatch curvature`.")] = False,
    requeue: Annotated[bool, typer.Option("--requeue", help="Under Slurm: after SIGUSR1, queue the job again.")] = False,
    workers: Annotated[str | None, typer.Option("--workers", metavar="N|MIN:MAX", help="Workers on this machine.")] = None,
    comm: s.CommKind = None,
    topology: s.TopologyName = None,
    store: Annotated[str | None, typer.Option(envvar="BIGBATCH_STORE", help="redis://... where workers meet; needs --job.")] = None,
    job: Annotated[str | None, typer.Option(envvar="BIGBATCH_JOB", help="Name of the run at the store.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    track: Track = None,
    quiet: s.Quiet = False,
) -> None:
    """Train a task by its recipe, or by the recipe rewritten for another batch."""
    os.environ |= {name: value for name, value in (("BIGBATCH_STORE", store), ("BIGBATCH_JOB", job)) if value}
    sets, overrides = split_sets(sets)
    if overrides and global_batch is None:
        raise UserError(f"--set plan.{next(iter(overrides))}: there is no plan without --global-batch; leave out plan.")
    chosen = s.find_recipe(task, recipe, s.settings_of(comm, topology, sets))
    if workers is not None:
        with requeued(requeue, out=out):
            raise typer.Exit(launch_workers(workers, out=out, servers=getattr(chosen.comm, "servers", 0)))
    quiet = not (speaks := own_rank() == 0) or quiet
    from bigbatch.cli.tables import console, show_plan
    from bigbatch.scaling import plan

    if global_batch is not None:
        how: dict[str, Any] = {"rule": rule, "workers": number_of_workers(), "noise_scale": read_noise_scale(noise), "overrides": overrides}
        chosen = (planned := plan(chosen, global_batch=global_batch, **how)).recipe
        if not quiet:
            show_plan(planned)
    from bigbatch.integrations.follow import tracked
    from bigbatch.tasks import load_task, metric_of
    from bigbatch.train import fit

    loaded = load_task(task, data=data)
    options: dict[str, Any] = {"save_every_s": save_every_s, "keep_checkpoints": keep, "quiet": quiet, "compile": compiled}
    with tracked(track if speaks else None, out), requeued(requeue, out=out):
        result = fit(loaded, chosen, out=out, resume=resume, **options)
    if not speaks:
        return
    mean, metric = result.samples / result.updates, metric_of(loaded.metric)
    size = f"{chosen.batch.global_batch:,}" if result.updates == chosen.num_updates else f"{mean:,.0f} on the mean"
    console().print(
        f"{task}: test {metric} {metric.text(result.test_score)}, validation {metric.text(result.validation_score)}, "
        f"{result.updates:,} updates of {size}, {result.train_s:.1f} s, {result.samples_per_s:,.0f} samples/s{result.cost_of_curvature()}",
        highlight=False,
    )
