"""`bigbatch plan`: what changes when the batch does."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.commands.batch_schedule import show_batch_schedule
from bigbatch.cli.display import output
from bigbatch.cli.options.how_it_is_run import runner_in, write_settings
from bigbatch.cli.options.local_steps import Bandwidth, Doctor, Latency, ModelBytes, Step, find_savings
from bigbatch.cli.options.names import PlanOf, Rule
from bigbatch.cli.options.sets import split_sets
from bigbatch.cli.options.settings import NoiseFile, PlanSets, RecipeFile, find_recipe
from bigbatch.cli.options.values import read_noise_scale
from bigbatch.core.checks import UserError


def plan(
    task: PlanOf,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", help="Batch to plan for, samples per update over all workers.")
    ] = None,
    batch_schedule: Annotated[
        Path | None,
        typer.Option("--batch-schedule", metavar="FILE", help="When the batch doubles, by a branches.json."),
    ] = None,
    largest: Annotated[int | None, typer.Option("--largest", help="Largest batch of a schedule.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="For --rule local, and for the seconds of a schedule.")] = None,
    rule: Rule = "auto",
    doctor: Doctor = None,
    bandwidth: Bandwidth = None,
    latency: Latency = None,
    step: Step = None,
    model_bytes: ModelBytes = None,
    recipe: RecipeFile = None,
    sets: PlanSets = None,
    noise: NoiseFile = None,
    groups: Annotated[bool, typer.Option("--groups", help="Also show which group each parameter falls into, and why.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the new recipe here (TOML).")] = None,
    json: output.Json = None,
) -> None:
    """Show what a rule changes for another batch, each change with its reason and its paper; or plan when the batch doubles."""
    if (global_batch is None) == (batch_schedule is None):
        raise UserError("--global-batch and --batch-schedule: give one of the two, a batch or a study of branches")
    from bigbatch.cli.display.plans import show_plan
    from bigbatch.cli.display.tables import say
    from bigbatch.core.storage.reading import exists
    from bigbatch.scaling import plan as make_plan

    file = recipe or (Path(task) if task.endswith(".toml") or (exists(Path(task)) and Path(task).is_file()) else None)
    if batch_schedule is not None:
        show_batch_schedule(find_recipe(task, file, sets), batch_schedule, largest=largest, workers=workers or 1, out=out, json=json)
        return
    assert global_batch is not None
    sets, overrides = split_sets(sets)
    scale = read_noise_scale(noise)
    runner = runner_in(file)
    how: dict[str, Any] = {"can_change": runner.can_change if runner is not None else None, "rule": rule, "workers": workers}
    planned = make_plan(find_recipe(task, file, sets), global_batch=global_batch, noise_scale=scale, overrides=overrides, **how)
    if runner is not None:
        runner.check(planned.recipe)
    output.check(json)
    link = {"doctor": doctor, "bandwidth": bandwidth, "latency": latency, "step": step, "model_bytes": model_bytes}
    saved = find_savings(planned, planned.reference.task, link) if planned.local is not None else None
    if json != output.STANDARD:
        show_plan(planned)
        for text in saved.sentences() if saved is not None else ():
            say(text)
        if groups:
            from bigbatch.cli.display.plans import show_groups_of

            show_groups_of(planned.recipe)
        elif planned.recipe.optimizer.groups_by == "muon":
            say("which parameters are Muon's: add --groups, or bigbatch.optim.describe_groups(model) for a model of your own")
    if out is not None:
        write_settings(out, planned.recipe, how_of=file)
        typer.echo(f"wrote {out}", err=json == output.STANDARD)
    output.write_json(json, planned.to_dict() | ({"savings": saved.to_dict()} if saved is not None else {}))
