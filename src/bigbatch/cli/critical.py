"""`bigbatch critical`: how many updates each batch needs to a target, and where larger batches stop paying."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli import output
from bigbatch.cli.device import Device
from bigbatch.cli.force import Force
from bigbatch.cli.pools import On, ParallelRuns, find_pool
from bigbatch.cli.runners import Better, Command, Curve, MetricName, What, find_runner, folder_name, label
from bigbatch.cli.settings import Data, NoiseFile, Quiet, RecipeFile, Sets
from bigbatch.cli.values import read_noise_scale, whole_numbers


def critical(
    batches: Annotated[str, typer.Option("--batches", metavar="B,B,B", help="Three or more global batches, such as 64,256,1024.")],
    target: Annotated[float, typer.Option("--target", help="Validation score that ends a run, or a better one: such as 0.88.")],
    task: What = None,
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
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    quiet: Quiet = False,
) -> None:
    """Search the best rate at each batch, count updates to the target, and fit the critical batch with its interval."""
    output.check(json)
    sizes, scale, pool = whole_numbers("--batches", batches), read_noise_scale(noise), find_pool(parallel, on)
    of_command: dict[str, Any] = {"command": command, "score": curve, "curve": curve, "metric": metric, "better": better}
    runner, chosen = find_runner(task, recipe, sets, data=data, margin=0.01 if command else None, **of_command)

    from bigbatch.cli.tables import console, show
    from bigbatch.report.trade_off import write_trade_off
    from bigbatch.study.critical import RESULT
    from bigbatch.study.critical import critical as measure
    from bigbatch.study.trade_off import rows_of

    folder = out or Path("runs/critical") / folder_name(task, runner)
    say = None if quiet else lambda text: typer.echo(text, err=True)
    run: dict[str, Any] = {"seeds": seeds, "max_epochs": max_epochs, "noise": scale, "out": folder, "say": say, "pool": pool}
    run["quiet"] = quiet or parallel is not None
    study = measure(runner, chosen, batches=sizes, target=target, **run)
    plot = write_trade_off(study.to_dict(), folder)

    if json != output.STANDARD:
        columns = ["batch", "best rate", "updates", "samples", "S/S_min", "E/E_min", "note"]
        title = f"{label(task, runner)} to validation {runner.metric} {runner.metric.exact(target)}"
        show(title, columns, [list(row) for row in rows_of(study)], numbers=set(columns[:-1]))
        for text in (study.sentence(), study.noise_in_words(), *(f"not known: {doubt}" for doubt in study.doubts())):
            if text:
                console().print(text, highlight=False)
        console().print(f"plot: {plot}, numbers: {json or folder / RESULT}", highlight=False)
    output.write_json(json, study.to_dict())
