"""`bigbatch steps`: updates to a target over all batches, every setting tuned anew at each."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting, tell
from bigbatch.cli.options.batches import batches_of
from bigbatch.cli.options.force import Force
from bigbatch.cli.options.pools import On, ParallelRuns, find_pool
from bigbatch.cli.options.runners import Better, Command, Curve, MetricName, What, find_runner, folder_name, label
from bigbatch.cli.options.settings import Data, Quiet, RecipeFile, Sets


def steps(
    task: What = None,
    batches: Annotated[
        str, typer.Option("--batches", metavar="B,B,B|LOW..HIGH[:FACTOR]", help="Batches: 8,32,128 or 2^3..2^13, twice the one before.")
    ] = "",
    target: Annotated[float, typer.Option("--target", help="Validation score that ends a run, or a better one: 0.88.")] = ...,  # type: ignore[assignment]
    trials: Annotated[int, typer.Option("--trials", help="Trials at each batch that do not diverge.")] = 32,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="FIELD=LOW:HIGH", help="A field to search besides rate and momentum; or FIELD=VALUE|VALUE. May be repeated."
        ),
    ] = None,
    max_epochs: Annotated[
        float | None, typer.Option("--max-epochs", help="Longest run at the smallest batch; 4 times the recipe's.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Data base of trials that several machines share: postgresql://...")
    ] = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    data: Data = None,
    command: Command = None,
    curve: Curve = None,
    metric: MetricName = None,
    better: Better = None,
    parallel: ParallelRuns = None,
    on: On = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study; runs/steps/TASK if left out.")] = None,
    json: output.Json = None,
    force: Force = False,  # noqa: ARG001 read by its callback
    quiet: Quiet = False,
) -> None:
    """Search the settings at each batch for the fewest updates to a target: where do larger batches stop saving updates?"""
    output.check(json)
    chosen = batches_of("--batches", batches)
    from bigbatch.cli.display.tables import say, show

    with starting("importing torch", quiet=quiet):
        from bigbatch.report import leave_report
        from bigbatch.study.steps import steps as measure
        from bigbatch.study.steps.space import parse
        from bigbatch.study.steps.steps import RESULT
        from bigbatch.study.steps.study import COLUMNS, stored_rows

    space = [parse(text) for text in search or []]
    of_command = {"command": command, "score": curve, "curve": curve, "metric": metric, "better": better}
    runner, reference = find_runner(task, recipe, sets, data=data, margin=0.01 if command else None, **of_command)
    folder = out or Path("runs/steps") / folder_name(task, runner)
    how = {"batches": chosen, "target": target, "trials": trials, "space": space, "max_epochs": max_epochs, "storage": storage}
    study = measure(runner, reference, out=folder, say=None if quiet else tell, quiet=True, pool=find_pool(parallel, on), **how)  # type: ignore[arg-type]
    drawn = leave_report(folder, RESULT)
    if json != output.STANDARD:
        title = f"{label(task, runner)} to validation {runner.metric} {runner.metric.exact(target)}"
        spare = [COLUMNS[3], COLUMNS[5]]
        show(title, COLUMNS, list(stored_rows(study.to_dict())), numbers={"batch", "updates", "samples"}, spare=spare)
        for text in (*study.sentences(), *(f"caveat: {doubt}" for doubt in study.doubts())):
            say(text)
        say(f"{drawn}, numbers: {json or folder / RESULT}".removeprefix(", "))
    output.write_json(json, study.to_dict())
