"""`bigbatch scale`: the main job. Reference, batch only, plan; did accuracy hold?"""

from pathlib import Path
from typing import Any

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting, tell
from bigbatch.cli.options import comparison as o
from bigbatch.cli.options.device import Device
from bigbatch.cli.options.force import Force
from bigbatch.cli.options.names import Rule
from bigbatch.cli.options.pools import On, ParallelRuns, find_pool
from bigbatch.cli.options.runners import Better, Command, Curve, MetricName, Score, What, find_runner, folder_name, label
from bigbatch.cli.options.sets import split_sets
from bigbatch.cli.options.settings import Data, NoiseFile, PlanSets, Quiet, RecipeFile
from bigbatch.cli.options.tracking import Track
from bigbatch.cli.options.values import read_noise_scale


def scale(
    to: o.To,
    task: What = None,
    rule: Rule = "auto",
    workers: o.Workers = None,
    seeds: o.Seeds = None,
    max_seeds: o.MaxSeeds = None,
    recipe: RecipeFile = None,
    sets: PlanSets = None,
    data: Data = None,
    noise: NoiseFile = None,
    margin: o.Margin = None,
    bad_share: o.BadShare = 0.2,
    command: Command = None,
    score: Score = None,
    curve: Curve = None,
    metric: MetricName = None,
    better: Better = None,
    parallel: ParallelRuns = None,
    on: On = None,
    out: o.Out = None,
    json: output.Json = None,
    fail_unless_held: o.FailUnlessHeld = False,
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Train the tuned reference, the same with only the batch changed, and the plan; compare them and write a report."""
    output.check(json)
    sets, overrides = split_sets(sets)
    of_command: dict[str, Any] = {"command": command, "score": score, "curve": curve, "metric": metric, "better": better}
    with starting("importing torch", quiet=quiet):
        runner, chosen = find_runner(task, recipe, sets, data=data, margin=margin, **of_command)
    pool, noise_scale = find_pool(parallel, on), read_noise_scale(noise)
    from bigbatch.cli.display.plans import show_plan
    from bigbatch.scaling import plan

    arms: dict[str, Any] = {"rule": rule, "workers": workers, "noise_scale": noise_scale, "overrides": overrides}
    planned = plan(chosen, global_batch=to, can_change=runner.can_change, **arms)
    if not quiet and json != output.STANDARD:
        show_plan(planned)
    from bigbatch.integrations.follow import tracked
    from bigbatch.report import leave_report
    from bigbatch.study.comparison.scale import scale as compare

    folder = out or Path("runs/scale") / folder_name(task, runner)
    say = None if quiet else tell
    design: dict[str, Any] = {"seeds": seeds, "max_seeds": max_seeds, "margin": margin, "bad_share": bad_share}
    how: dict[str, Any] = {"out": folder, "quiet": quiet or parallel is not None, "say": say, "pool": pool}
    with tracked(track, folder, study=True):
        comparison = compare(runner, to=to, recipe=chosen, **arms, **design, **how)
        drawn = leave_report(folder)
    if json != output.STANDARD:
        o.show_comparison(comparison, label(task, runner), drawn)
    output.write_json(json, comparison.to_dict())
    if fail_unless_held and (code := o.exit_code(comparison)):
        raise typer.Exit(code)
