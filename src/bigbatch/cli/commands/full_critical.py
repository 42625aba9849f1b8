"""The full study of `bigbatch critical`: the best rate at each batch, and the updates that it needs to the target."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigbatch.cli.display import output
from bigbatch.cli.display.notices import tell
from bigbatch.cli.options.pools import find_pool
from bigbatch.cli.options.runners import label
from bigbatch.cli.options.values import read_noise_scale, whole_numbers

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe
    from bigbatch.runner.protocol import Runner


def full_study(
    task: str | None,
    runner: "Runner",
    recipe: "Recipe",
    *,
    batches: str,
    target: float,
    noise: Path | None,
    parallel: int | None,
    on: str | None,
    out: Path,
    json: str | None,
    quiet: bool,
    **run: Any,
) -> None:
    """Measure, print and write what `bigbatch.study.critical.critical` finds; `run` holds its other arguments."""
    from bigbatch.cli.display.tables import say, show
    from bigbatch.report import leave_report
    from bigbatch.study.critical.critical import RESULT
    from bigbatch.study.critical.critical import critical as measure
    from bigbatch.study.critical.study import rows_of

    run |= {"batches": whole_numbers("--batches", batches), "target": target, "noise": read_noise_scale(noise), "out": out}
    run |= {"say": None if quiet else tell, "pool": find_pool(parallel, on)}
    study = measure(runner, recipe, quiet=quiet or parallel is not None, **run)
    drawn = leave_report(out, RESULT)
    if json != output.STANDARD:
        columns = ["batch", "best rate", "updates", "samples", "S/S_min", "E/E_min", "note"]
        title = f"{label(task, runner)} to validation {runner.metric} {runner.metric.exact(target)}"
        show(title, columns, [list(row) for row in rows_of(study)], numbers=set(columns[:-1]))
        for text in (study.sentence(), study.noise_in_words(), *(f"caveat: {doubt}" for doubt in study.doubts())):
            if text:
                say(text)
        say(f"{drawn}, numbers: {json or out / RESULT}".removeprefix(", "))
    output.write_json(json, study.to_dict())
