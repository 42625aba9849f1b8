"""`bigbatch critical`: how large a batch is worth it, by runs to a target at several batches, or by branches of one run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.commands.branches import At, BranchOf, KeepRate, LrFactors, LrRule, Multiples, Samples, Tolerance, Windows, branch_study
from bigbatch.cli.commands.full_critical import full_study
from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting
from bigbatch.cli.options.device import Device
from bigbatch.cli.options.force import Force
from bigbatch.cli.options.pools import On, ParallelRuns
from bigbatch.cli.options.runners import Better, Command, Curve, MetricName, What, find_runner, folder_name
from bigbatch.cli.options.settings import Data, NoiseFile, Quiet, RecipeFile, Sets
from bigbatch.core.checks import UserError


def critical(
    task: What = None,
    batches: Annotated[str | None, typer.Option("--batches", metavar="B,B,B", help="Three or more batches: 64,256,1024.")] = None,
    target: Annotated[float | None, typer.Option("--target", help="Validation score that ends a run, or a better one: 0.88.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs a batch at its best rate.")] = 1,
    max_epochs: Annotated[float | None, typer.Option("--max-epochs", help="Budget of a run; 4 times the recipe's if left out.")] = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    data: Data = None,
    noise: NoiseFile = None,
    command: Command = None,
    curve: Curve = None,
    metric: MetricName = None,
    better: Better = None,
    parallel: ParallelRuns = None,
    on: On = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study; runs/critical/TASK if left out.")] = None,
    json: output.Json = None,
    device: Device = None,
    force: Force = False,  # noqa: ARG001 read by its callback
    quiet: Quiet = False,
    branch: BranchOf = None,
    at: At = None,
    multiples: Multiples = None,
    samples: Samples = None,
    windows: Windows = 3,
    lr: LrRule = "sqrt",
    lr_factors: LrFactors = "1",
    tolerance: Tolerance = None,
    keep_rate: KeepRate = False,
) -> None:
    """Fit the critical batch: to updates that several batches need to a target, or to branches of a run."""
    output.check(json)
    of_command: dict[str, Any] = {"command": command, "score": curve, "curve": curve, "metric": metric, "better": better}
    margin = 0.01 if command else None
    if branch is None:
        if batches is None or target is None:
            raise UserError("--batches and --target: are missing; or give --branch RUN, a run with checkpoints")
        with starting("importing torch", quiet=quiet):
            runner, chosen = find_runner(task, recipe, sets, data=data, margin=margin, **of_command)
        where: dict[str, Any] = {"out": out or Path("runs/critical") / folder_name(task, runner), "json": json, "quiet": quiet}
        budget: dict[str, Any] = {"batches": batches, "target": target, "seeds": seeds, "max_epochs": max_epochs}
        full_study(task, runner, chosen, noise=noise, parallel=parallel, on=on, **budget, **where)
        return
    from bigbatch.core.hardware.denormals import flush_denormals
    from bigbatch.study.branches.base_runs import find_base_run

    flush_denormals()
    if batches is not None or target is not None:
        raise UserError("--branch: is another way than --batches and --target; leave them out")
    folder = out or Path("runs/critical") / f"{branch.resolve().name}-branches"
    given: dict[str, Any] = {"data": data, "margin": margin, **of_command}
    base = find_base_run(branch, task, out=folder, data=data, device=device, find=lambda: find_runner(task, recipe, sets, **given)[0])
    how: dict[str, Any] = {"at": at, "multiples": multiples, "samples": samples, "windows": windows, "lr": lr, "lr_factors": lr_factors}
    branch_study(base, **how, tolerance=tolerance, decays=not keep_rate, out=folder, json=json, quiet=quiet)
