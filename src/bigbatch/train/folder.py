"""The folder of a run: may it be written, does it hold a run, is that run finished?"""

from pathlib import Path

from bigbatch.core.checks import CheckpointError, OutputError
from bigbatch.core.files import make_folder, remove_leftovers
from bigbatch.recipe import Recipe
from bigbatch.train.result import Result


def open_folder(out: str | Path | None, *, resume: bool) -> Path | None:
    """The run's folder, created and cleaned of what a killed run left half-written.

    Raises:
        CheckpointError: If there is nothing to resume.
        OutputError: If it can't be written, or holds a run that would be overwritten.
    """
    if out is None:
        if resume:
            raise CheckpointError("resume = True: there is no folder to resume from; give the run's folder as out")
        return None
    folder = Path(out)
    holds_run = (folder / "last.pt").exists() or (folder / "result.json").exists()
    if resume and not holds_run:
        raise CheckpointError(f"{folder}: holds no run to resume (no last.pt); check --out, or start the run without --resume")
    if holds_run and not resume:
        raise OutputError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    make_folder(folder)
    remove_leftovers(folder)
    return folder


def finished_result(folder: Path | None, recipe: Recipe) -> Result | None:
    """The result of a finished run in `folder`, None if there is none.

    Raises:
        CheckpointError: If the finished run had another recipe; the differing fields are named.
    """
    if folder is None or not (folder / "result.json").exists():
        return None
    differing = recipe.differences(Recipe.load(folder / "recipe.toml"))
    if differing:
        raise CheckpointError(f"{folder}: holds a finished run of another recipe ({'; '.join(differing)}); choose another --out")
    return Result.from_json((folder / "result.json").read_text())
