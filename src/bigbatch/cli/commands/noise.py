"""`bigbatch noise`: how large a batch the gradients of a run support."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import starting
from bigbatch.cli.options.device import Device
from bigbatch.cli.options.force import Force
from bigbatch.cli.options.names import TaskName
from bigbatch.cli.options.settings import Data, Quiet, RecipeFile, Sets, find_recipe
from bigbatch.cli.options.values import whole_numbers


def noise(
    task: TaskName,
    at: Annotated[str | None, typer.Option("--at", metavar="N,N", help="Look around these updates; the whole run if left out.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Each layer too.")] = False,
    norms: Annotated[bool, typer.Option("--norms", help="The norm layers alone, which costs least.")] = False,
    recipe: RecipeFile = None,
    sets: Sets = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/noise/TASK if left out.")] = None,
    json: output.Json = None,
    device: Device = None,  # noqa: ARG001 read by its callback
    force: Force = False,  # noqa: ARG001 read by its callback
    quiet: Quiet = False,
) -> None:
    """Train the recipe, measure the gradient noise scale on the way, and say what batch it supports."""
    from bigbatch.cli.display.tables import say, show

    chosen, updates = find_recipe(task, recipe, sets), whole_numbers("--at", at) if at else []
    output.check(json)
    folder = out or Path("runs/noise") / task.replace("/", "-").replace(":", "-")
    with starting("importing torch", quiet=quiet):
        from bigbatch.core.hardware.denormals import flush_denormals
        from bigbatch.report import leave_report
        from bigbatch.runner.settings_file import load_runner
        from bigbatch.study.noise import measure_noise
    flush_denormals()
    study = measure_noise(load_runner(task, data=data), chosen, out=folder, at=updates, layers=layers, norms=norms, quiet=quiet)
    drawn = leave_report(folder, "noise.json")

    if json != output.STANDARD:
        tokens = ["in tokens"] if study.tokens_per_sample else []
        columns = ["updates", "part", "noise scale, samples", *tokens, "signal |G|^2", "noise tr(S)", "updates used"]
        rows = [
            [
                f"{s.first:,} to {s.last:,}",
                part,
                e.in_words(),
                *[study.in_tokens(e) for _ in tokens],
                f"{e.signal:.3g}",
                f"{e.noise:.3g}",
                f"{e.num_updates:,}",
            ]
            for s in study.stretches
            for part, e in s.estimates.items()
        ]
        show(f"{task} at a batch of {chosen.batch.global_batch:,}", columns, rows, numbers=set(columns[3 + len(tokens) :]))
        say(study.sentence())
        for doubt in study.doubts():
            say(f"caveat: {doubt}")
        say(f"{drawn}, numbers: {json or folder / 'noise.json'}".removeprefix(", "))
    output.write_json(json, study.to_dict())
