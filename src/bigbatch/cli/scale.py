"""`bigbatch scale`: the main job. Reference, batch only, plan; did accuracy hold?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli import output
from bigbatch.cli.device import Device
from bigbatch.cli.force import Force
from bigbatch.cli.pools import On, ParallelRuns, find_pool
from bigbatch.cli.runners import Better, Command, Curve, MetricName, Score, What, find_runner, folder_name, label
from bigbatch.cli.sets import split_sets
from bigbatch.cli.settings import Data, NoiseFile, PlanSets, Quiet, RecipeFile, Rule
from bigbatch.cli.tracking import Track
from bigbatch.cli.values import read_noise_scale

MOST = "Runs an arm at most, until it is decided; 14, or --seeds if that is more."
MARGIN = "What may be lost without calling it a loss, in the metric's unit; the task's own, or 0.5 points."
BAD = 'Share of runs that may be bad; "held" excludes more: 0.2 takes 14 seeds, 0.5 takes 5.'


def scale(
    to: Annotated[int, typer.Option("--to", "--global-batch", help="Batch to scale to; by --rule local, samples between exchanges.")],
    task: What = None,
    rule: Rule = "auto",
    workers: Annotated[int | None, typer.Option("--workers", help="For --rule local: processes of this machine that exchange.")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Runs an arm before the first verdict; what 80 % power asks for, if left out.")
    ] = None,
    max_seeds: Annotated[int | None, typer.Option("--max-seeds", help=MOST)] = None,
    recipe: RecipeFile = None,
    sets: PlanSets = None,
    data: Data = None,
    noise: NoiseFile = None,
    margin: Annotated[float | None, typer.Option("--margin", help=MARGIN)] = None,
    bad_share: Annotated[float, typer.Option("--bad-share", help=BAD)] = 0.2,
    command: Command = None,
    score: Score = None,
    curve: Curve = None,
    metric: MetricName = None,
    better: Better = None,
    parallel: ParallelRuns = None,
    on: On = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all runs; runs/scale/TASK if left out.")] = None,
    json: output.Json = None,
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Train the tuned reference, the same with only the batch changed, and the plan; compare them and write a report."""
    from bigbatch.cli.tables import show_comparison, show_plan
    from bigbatch.scaling import plan

    output.check(json)
    sets, overrides = split_sets(sets)
    of_command: dict[str, Any] = {"command": command, "score": score, "curve": curve, "metric": metric, "better": better}
    runner, chosen = find_runner(task, recipe, sets, data=data, margin=margin, **of_command)
    pool, noise_scale = find_pool(parallel, on), read_noise_scale(noise)
    arms: dict[str, Any] = {"rule": rule, "workers": workers, "noise_scale": noise_scale, "overrides": overrides}
    planned = plan(chosen, global_batch=to, can_change=runner.can_change, **arms)
    if not quiet and json != output.STANDARD:
        show_plan(planned)

    from bigbatch.integrations.follow import tracked
    from bigbatch.report import leave_report
    from bigbatch.study.compare import scale as compare

    folder = out or Path("runs/scale") / folder_name(task, runner)
    say = None if quiet else lambda text: typer.echo(text, err=True)
    design: dict[str, Any] = {"seeds": seeds, "max_seeds": max_seeds, "margin": margin, "bad_share": bad_share}
    how: dict[str, Any] = {"out": folder, "quiet": quiet or parallel is not None, "say": say, "pool": pool}
    with tracked(track, folder, study=True):
        comparison = compare(runner, to=to, recipe=chosen, **arms, **design, **how)
        drawn = leave_report(folder)
    if json != output.STANDARD:
        show_comparison(comparison, label(task, runner), drawn)
    output.write_json(json, comparison.to_dict())
