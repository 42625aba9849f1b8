"""A plan, and the groups of its optimizer, for the terminal."""

from typing import TYPE_CHECKING

from bigbatch.cli.display.tables import show, warn

if TYPE_CHECKING:
    from bigbatch.optim import GroupTable
    from bigbatch.recipe import Recipe
    from bigbatch.scaling import Plan


def show_plan(plan: "Plan") -> None:
    """Print what a plan changes, and its warnings."""
    from bigbatch.scaling import readable

    title = f"{plan.reference.task or 'recipe'}: batch {plan.reference.batch.global_batch:,} to {plan.recipe.batch.global_batch:,}"
    if (steps := plan.local) is not None:
        title += f" over {steps.workers} workers, which exchange every {steps.samples:,} samples"
    rows = [[c.field, readable(c.before), readable(c.after), c.why, c.paper.short if c.paper else ""] for c in plan.changes]
    show(f"{title}, rule {plan.rule} ({plan.reason})", ["field", "before", "after", "why", "paper"], rows, numbers={"before", "after"})
    for warning in plan.warnings:
        warn(warning)


def show_groups_of(recipe: "Recipe") -> None:
    """Print the groups of a recipe's own task."""
    from bigbatch.tasks import load_task
    from bigbatch.train.setup.build import build_model, group_table

    show_groups(group_table(build_model(load_task(recipe.task), recipe), recipe))


def show_groups(table: "GroupTable") -> None:
    """Print which group each parameter falls into, and why."""
    shapes = ["x".join(map(str, row.shape)) for row in table]
    matrices = ["{} of {}x{}".format(*row.matrices) if row.matrices else "" for row in table]
    rows = [[row.name, shape, row.group, stack, row.why] for row, shape, stack in zip(table, shapes, matrices, strict=True)]
    show("groups of parameters", ["name", "shape", "group", "matrices", "why"], rows)
