"""The folder of a run: may it be written, does it hold a run, is that run finished?"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import CheckpointError, OutputError, RecipeError
from bigbatch.core.environment import job_names, names_of_a_restart
from bigbatch.core.files import make_folder, remove_leftovers, write_atomically
from bigbatch.core.folder_lock import owned
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Splits, Task
from bigbatch.train.augmentation import Views
from bigbatch.train.checkpoint import remove_leftover_shards
from bigbatch.train.diagnose import check_finite
from bigbatch.train.result import Result
from bigbatch.train.share import check_shares


@contextmanager
def owned_by_first(out: str | Path | None, ranks: Ranks, *, resume: bool) -> Iterator[None]:
    """Hold the run's folder for the first worker, from `with` to its end. Called by every worker.

    Raises:
        OutputError: On every worker, if another run holds it.
    """
    with ExitStack() as stack:

        def hold() -> str:
            if out is not None and (Path(out).exists() or not resume):
                stack.enter_context(owned(Path(out)))
            return ""

        ranks.by_first(hold)
        yield


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
    if holds_run and not resume and not _begun_by_this_job(folder):
        raise OutputError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    make_folder(folder)
    remove_leftovers(folder)
    remove_leftover_shards(folder)
    if names := job_names():
        write_atomically(folder / "job", "\n".join(names).encode())
    return folder


def open_together(out: str | Path | None, recipe: Recipe, *, resume: bool, ranks: Ranks) -> tuple[Path | None, bool, Result | None]:
    """Open the run's folder on the first worker and tell the others.

    A worker that was started anew by its launcher resumes what its own job has begun.

    Returns:
        The folder (None on workers that write nothing), whether to resume, and the result if the run is finished.

    Raises:
        UserError: As `open_folder` and `finished_result`, on every worker.
    """

    def open_here() -> str:
        folder = open_folder(out, resume=resume)
        finished = finished_result(folder, recipe)
        return json.dumps([resume or _begun_by_this_job(folder), finished and finished.to_json()])

    resumes, finished = json.loads(ranks.by_first(open_here))
    return Path(out) if out is not None and ranks.first else None, resumes, Result.from_json(finished) if finished else None


def finished_result(folder: Path | None, recipe: Recipe) -> Result | None:
    """The result of a finished run in `folder`, None if there is none.

    Raises:
        CheckpointError: If the finished run had another recipe; the differing fields are named.
    """
    if folder is None or not (folder / "result.json").exists():
        return None
    differing = recipe.differences(Recipe.load(folder / "recipe.toml", saved=True))
    if differing:
        raise CheckpointError(f"{folder}: holds a finished run of another recipe ({'; '.join(differing)}); choose another --out")
    return Result.from_json((folder / "result.json").read_text())


def _begun_by_this_job(folder: Path | None) -> bool:
    if folder is None or not (names := names_of_a_restart()) or not (folder / "last.pt").exists():
        return False
    try:
        return bool(set(names) & set((folder / "job").read_text(errors="replace").splitlines()))
    except OSError:
        return False


def load_data(task: Task, recipe: Recipe, ranks: Ranks) -> Splits:
    """The data, once it and the workers fit the recipe."""
    data = task.splits()
    if recipe.num_train_samples != (size := len(data.train)):  # type: ignore[arg-type]
        raise RecipeError(f"num_train_samples = {recipe.num_train_samples:,}: the task's training set has {size:,}; correct the recipe")
    for name, split in data._asdict().items():
        check_finite(name, split)
    if recipe.augmentation is not None:
        Views(recipe.augmentation, recipe, data.train)
    check_shares(recipe.batch.global_batch, ranks.world_size, recipe.batch.ghost_batch)
    return data
