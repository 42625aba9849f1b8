"""`bigbatch train`: one run."""

import os
from typing import Any

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting
from bigbatch.cli.options import run as o
from bigbatch.cli.options import settings as s
from bigbatch.cli.options.device import Device
from bigbatch.cli.options.force import Force
from bigbatch.cli.options.names import CommKind, Rule, TaskName
from bigbatch.cli.options.sets import split_sets
from bigbatch.cli.options.tracking import Track
from bigbatch.cli.options.values import read_noise_scale
from bigbatch.cli.process.requeue import requeued
from bigbatch.cli.process.workers import launch_workers
from bigbatch.core.checks import UserError
from bigbatch.core.environment import number_of_workers, own_rank


def train(
    task: TaskName,
    recipe: s.RecipeFile = None,
    global_batch: o.GlobalBatch = None,
    rule: Rule = "auto",
    sets: s.PlanSets = None,
    data: s.Data = None,
    noise: s.NoiseFile = None,
    out: o.Out = None,
    resume: o.Resume = False,
    save_every_s: o.SaveEvery = 30.0,
    keep: o.Keep = False,
    requeue: o.Requeue = False,
    workers: o.Workers = None,
    comm: CommKind = None,
    topology: s.TopologyName = None,
    store: o.Store = None,
    job: o.Job = None,
    compiled: o.Compile = False,
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    track: Track = None,
    json: output.Json = None,
    quiet: s.Quiet = False,
) -> None:
    """Train a task by its recipe, or by the recipe rewritten for another batch."""
    os.environ |= {name: value for name, value in (("BIGBATCH_STORE", store), ("BIGBATCH_JOB", job)) if value}
    output.check(json)
    sets, overrides = split_sets(sets)
    if overrides and global_batch is None:
        raise UserError(f"--set plan.{next(iter(overrides))}: there is no plan without --global-batch; leave out plan.")
    task, chosen = s.find_task(task, recipe, s.settings_of(comm, topology, sets))
    if workers is not None:
        with requeued(requeue, out=out):
            raise typer.Exit(launch_workers(workers, out=out, servers=getattr(chosen.comm, "servers", 0)))
    quiet = not (speaks := own_rank() == 0) or quiet
    if global_batch is not None:
        from bigbatch.cli.display.plans import show_plan
        from bigbatch.scaling import plan

        how: dict[str, Any] = {"rule": rule, "workers": number_of_workers(), "noise_scale": read_noise_scale(noise), "overrides": overrides}
        chosen = (planned := plan(chosen, global_batch=global_batch, **how)).recipe
        if not quiet and json != output.STANDARD:
            show_plan(planned)
    with starting(f"{task}: {o.length(chosen)}", quiet=quiet):
        from bigbatch.core.hardware.denormals import flush_denormals
        from bigbatch.integrations.follow import tracked
        from bigbatch.tasks import load_task, metric_of
        from bigbatch.train import fit

        flush_denormals()
        found = load_task(task, data=data)
    with tracked(track if speaks else None, out), requeued(requeue, out=out):
        result = fit(found, chosen, out=out, resume=resume, save_every_s=save_every_s, keep_checkpoints=keep, quiet=quiet, compile=compiled)
    if speaks:
        o.tell_result(json, o.sentence(task, result, chosen, metric_of(found.metric)), result)
