"""Options of `bigbatch train`, and the line that it ends with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.cli.display import output

if TYPE_CHECKING:
    from bigbatch.core.metric import Metric
    from bigbatch.recipe import Recipe
    from bigbatch.train import Result

GlobalBatch = Annotated[int | None, typer.Option("--global-batch", help="Scale the recipe to this batch first.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the record and checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
SaveEvery = Annotated[float, typer.Option("--save-every", help="Least seconds between checkpoints.")]
Keep = Annotated[bool, typer.Option("--keep-checkpoints", help="One of every evaluation, for `bigbatch curvature`.")]
Requeue = Annotated[bool, typer.Option("--requeue", help="Under Slurm: after SIGUSR1, queue the job again.")]
Workers = Annotated[str | None, typer.Option("--workers", metavar="N|MIN:MAX", help="Workers on this machine.")]
Store = Annotated[str | None, typer.Option(envvar="BIGBATCH_STORE", help="redis://... where workers meet; needs --job.")]
Job = Annotated[str | None, typer.Option(envvar="BIGBATCH_JOB", help="Name of the run at the store.")]
Compile = Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")]


def length(recipe: "Recipe") -> str:
    """How much a run is, in words."""
    return f"{recipe.total_epochs:g} epochs, {recipe.num_updates:,} updates of {recipe.batch.global_batch:,}"


def sentence(task: str, result: "Result", recipe: "Recipe", metric: "Metric") -> str:
    """What a run measured."""
    mean = result.samples / result.updates
    size = f"{recipe.batch.global_batch:,}" if result.updates == recipe.num_updates else f"{mean:,.0f} on the mean"
    return (
        f"{task}: test {metric} {metric.text(result.test_score)}, validation {metric.text(result.validation_score)}, "
        f"{result.updates:,} updates of {size}, {result.train_s:.1f} s, {result.samples_per_s:,.0f} samples/s{result.cost_of_curvature()}"
    )


def tell_result(json: str | None, text: str, result: "Result") -> None:
    """Print and write a result."""
    from bigbatch.cli.display.tables import say

    if json != output.STANDARD:
        say(text)
    output.write_json(json, result.to_dict())
