"""Options that several commands share, and how a recipe is found from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.cli.options.how_it_is_run import sections_of
from bigbatch.cli.options.sets import apply_sets
from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe


RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe (TOML), or a shipped one by name; the task's own if left out.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field, such as optimizer.lr=0.2.")]
PlanSets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field, such as optimizer.lr=0.2; plan.FIELD: of the new recipe."),
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the data set.")]
NoiseFile = Annotated[Path | None, typer.Option("--noise", help="JSON of `bigbatch noise`, to compare batches with.")]
TopologyName = Annotated[str | None, typer.Option("--topology", help="Of gossip: ring, torus, one_peer_exponential, ...")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def find_recipe(task: str, file: Path | None, sets: list[str] | None) -> "Recipe":
    """The recipe in `file`, or of that name; else the task's named one; with the `--set` options applied.

    Raises:
        UserError: If there is no such recipe, or a setting is malformed.
    """
    from bigbatch.recipe import Recipe, recipe_names

    if file is not None:
        recipe = Recipe.named(str(file)) if str(file) in recipe_names() and not file.exists() else Recipe.load(file)
    elif task in recipe_names():
        recipe = Recipe.named(task)
        if recipe.task != task:
            raise UserError(f"{task}: is a recipe of the task {recipe.task}; give {recipe.task} --recipe {task}")
    elif ":" in task:
        raise UserError(f"task {task!r}: has no shipped recipe; give yours with --recipe FILE")
    else:
        from bigbatch.core.checks import unknown

        if Path(task).suffix:
            raise UserError(f"{task}: is no file that is here, and no task; `bigbatch tasks` lists these")
        raise UserError(unknown("task", task, recipe_names()) + "; your own is given as module:Class")
    return apply_sets(recipe, sets)


def find_task(task: str, file: Path | None, sets: list[str] | None) -> "tuple[str, Recipe]":
    """A task and its recipe, as `find_recipe`; a recipe file in the task's place says which it is.

    Raises:
        UserError: As `find_recipe`, and if the file says no task.
    """
    if file is not None or not task.endswith(".toml"):
        return task, find_recipe(task, file, sets)
    if sections := sections_of(Path(task)):
        raise UserError(
            f"{task}: is run by its [{next(iter(sections))}], which `bigbatch scale` and the other studies do; train runs tasks"
        )
    recipe = find_recipe(task, Path(task), sets)
    if not recipe.task:
        raise UserError(f'{task}: says no task; add task = "...", or give the task, and the file by --recipe')
    return recipe.task, recipe


def settings_of(comm: str | None, topology: str | None, sets: list[str] | None) -> list[str]:
    """`--comm` and `--topology` as the `--set` options that they stand for, before those that were given."""
    stands_for = {"comm.kind": comm, "comm.topology": topology}
    return [*(f"{field}={value}" for field, value in stands_for.items() if value is not None), *(sets or [])]
