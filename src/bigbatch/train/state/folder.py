"""The folder of a run: may it be written, does it hold a run, is that run finished?"""

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import CheckpointError, InputError, OutputError, RecipeError
from bigbatch.core.environment import goes_on_by_itself, job_names, names_of_a_restart
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.reading import exists, read_text
from bigbatch.core.storage.writing import keep_damaged, make_folder, remove_leftovers, write_atomically
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import Splits, Task
from bigbatch.train.data.augmentation import Views
from bigbatch.train.data.shares import check_shares
from bigbatch.train.data.stream_reader import has_length
from bigbatch.train.measure.diagnose import check_finite
from bigbatch.train.state.checkpoint import read_checkpoint, remove_leftover_shards
from bigbatch.train.state.result import Result


@contextmanager
def lock_on_rank_0(out: str | Path | None, ranks: Ranks, *, resume: bool) -> Iterator[None]:
    """Hold the run's folder for the first worker, from `with` to its end. Called by every worker.

    Raises:
        OutputError: On every worker, if another run holds it.
    """
    with ExitStack() as stack:

        def hold() -> str:
            if out is not None and (not resume or exists(Path(out))):
                stack.enter_context(owned(Path(out)))
            return ""

        ranks.run_on_rank_0(hold)
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
    holds_run = exists(folder / "last.pt") or exists(folder / "result.json")
    if resume and not holds_run:
        raise CheckpointError(f"{folder}: holds no run to resume (no last.pt); check --out, or start the run without --resume")
    if holds_run and not resume and not _begun_by_this_job(folder):
        how = "continue it with --resume" if not goes_on_by_itself() else "remove it"
        raise OutputError(f"{folder}: already holds a run; {how}, or choose another --out")
    make_folder(folder)
    remove_leftovers(folder)
    remove_leftover_shards(folder)
    if names := job_names():
        write_atomically(folder / "job", "\n".join(names).encode())
    return folder


def open_folder_on_rank_0(out: str | Path | None, recipe: Recipe, *, resume: bool, ranks: Ranks) -> tuple[Path | None, bool, Result | None]:
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

    resumes, finished = json.loads(ranks.run_on_rank_0(open_here))
    return Path(out) if out is not None and ranks.is_rank_0 else None, resumes, Result.from_json(finished) if finished else None


def finished_result(folder: Path | None, recipe: Recipe) -> Result | None:
    """The result of a finished run in `folder`, None if there is none.

    Raises:
        CheckpointError: If the finished run had another recipe; the differing fields are named.
        UserError: If the result is damaged, or no file that could tell holds the recipe that it is of.
    """
    if folder is None or not exists(folder / "result.json"):
        return None
    result = Result.load(folder / "result.json")
    differing = recipe.differences(_recipe_of(folder))
    if differing:
        raise CheckpointError(f"{folder}: holds a finished run of another recipe ({'; '.join(differing)}); choose another --out")
    write_recipe(folder, recipe)
    return result


def write_recipe(folder: Path | None, recipe: Recipe) -> None:
    """Write `recipe.toml`, unless it is there; one that is damaged, or another's, is kept under another name, with a warning.

    Raises:
        OutputError: If it can't be written.
    """
    if folder is None:
        return
    path = folder / "recipe.toml"
    if exists(path):
        try:
            differing = recipe.differences(Recipe.load(path, saved=True))
            wrong = f"recipe {path}: is not the run's ({'; '.join(differing)})" if differing else ""
        except RecipeError as error:
            wrong = str(error)
        if not wrong:
            return
        kept = keep_damaged(path)
        warnings.warn(f"{wrong}; it is written anew, and the file as it was is {kept.name}", stacklevel=2)
    write_atomically(path, recipe.to_toml().encode())


def _recipe_of(folder: Path) -> Recipe:
    """Of the run in a folder; what its last checkpoint holds, where `recipe.toml` is missing or damaged."""
    try:
        return Recipe.load(folder / "recipe.toml", saved=True)
    except RecipeError:
        if not exists(folder / "last.pt"):
            raise
        return Recipe.from_saved(read_checkpoint(folder / "last.pt", torch.device("cpu"))["recipe"])


def _begun_by_this_job(folder: Path | None) -> bool:
    if folder is None or not (names := names_of_a_restart()) or not exists(folder / "last.pt"):
        return False
    try:
        return bool(set(names) & set(read_text(folder / "job", "").splitlines()))
    except InputError:  # no job's, or damaged: the folder counts as another's
        return False


def load_data(task: Task, recipe: Recipe, ranks: Ranks) -> Splits:
    """The data, once it and the workers fit the recipe."""
    data = splits_of(task)
    for name, split in data._asdict().items():
        if not has_length(split):
            raise RecipeError(
                f"the {name} data of task {task.name} is a stream without a length: an epoch must be known; define __len__ in its "
                "IterableDataset"
            )
    if recipe.num_train_samples != (size := len(data.train)):  # type: ignore[arg-type]
        raise RecipeError(
            f"num_train_samples = {recipe.num_train_samples:,}: the task's training set has {size:,}; set num_train_samples={size}"
        )
    for name, split in data._asdict().items():
        check_finite(name, split)
    if recipe.augmentation is not None:
        Views(recipe.augmentation, recipe, data.train)
    check_shares(recipe.batch.global_batch, ranks.world_size, recipe.batch.ghost_batch)
    return data
