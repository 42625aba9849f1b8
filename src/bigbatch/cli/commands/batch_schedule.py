"""`bigbatch plan --batch-schedule`: when the batch doubles, by the branches of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bigbatch.cli.display import output
from bigbatch.cli.options.values import read_json

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe


def show_batch_schedule(recipe: "Recipe", study: Path, *, largest: int | None, workers: int, out: Path | None, json: str | None) -> None:
    """Plan, print and write a schedule of the batch."""
    from bigbatch.batching.batch_steps import rate_factor
    from bigbatch.cli.display.tables import say, show
    from bigbatch.core.storage.writing import make_folder, write_atomically
    from bigbatch.study.branches.batch_schedule import batch_schedule

    output.check(json)
    stored = read_json("--batch-schedule", study, "bigbatch critical --branch")
    planned = batch_schedule(recipe, stored, largest=largest, workers=workers)
    if json != output.STANDARD:
        first, columns = recipe.batch.global_batch, ["from sample", "epoch", "batch", "rate times"]
        lr = getattr(planned.recipe.batch.rule, "lr", "none")
        rows = [
            [f"{samples:,}", f"{samples / recipe.num_train_samples:.3g}", f"{batch:,}", f"{rate_factor(batch, first, lr):.3g}"]
            for samples, batch in ((0, first), *planned.steps)
        ]
        show(f"{recipe.task}: the batch over the run", columns, rows, numbers=set(columns))
        for text in (planned.sentence(), *(f"caveat: {note}" for note in planned.notes)):
            say(text)
    if out is not None:
        make_folder(out.parent)
        write_atomically(out, planned.recipe.to_toml().encode())
        typer.echo(f"wrote {out}", err=json == output.STANDARD)
    output.write_json(json, planned.to_dict())
