"""Warm-ups in samples or updates, planned by rules that know epochs: into epochs at the reference's batch, and back into its own unit.

A rule that leaves the warm-up alone so keeps its samples; updates are then fewer at a larger batch, as a budget's are. Where samples are no
whole number of updates of the new batch, the plan has them in samples.
"""

from collections.abc import Iterator

from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import TimedWarmup
from bigbatch.scaling.change import Change

EPOCHS = "schedule.warmup.epochs"


def in_epochs(recipe: Recipe) -> Recipe:
    """The same recipe with its warm-up in epochs.

    >>> recipe = Recipe.named("digits/mlp").replace({"num_train_samples": 1280, "schedule.warmup.updates": 20})
    >>> in_epochs(recipe).schedule.warmup.epochs  # 20 updates of 32
    0.5
    """
    warmup = recipe.schedule.warmup
    return recipe.replace({EPOCHS: recipe.warmup_epochs}) if isinstance(warmup, TimedWarmup) and warmup.epochs is None else recipe


def in_own_unit(recipe: Recipe, changes: dict[str, Change], global_batch: int) -> dict[str, Change]:
    """The changes of the recipe's warm-up in the unit that the recipe has it in; all others as they are.

    Args:
        recipe: The reference.
        changes: Of `in_epochs(recipe)`, by field.
        global_batch: Of the plan.
    """
    warmup = recipe.schedule.warmup
    if not isinstance(warmup, TimedWarmup) or warmup.epochs is not None or "schedule.warmup" in changes:
        return changes
    ruled = changes.get(EPOCHS, Change(EPOCHS, None, recipe.warmup_epochs, "the same samples"))
    own = {change.field: change for change in _lengths(recipe, warmup, ruled, global_batch)}
    return {field: change for field, change in changes.items() if field != EPOCHS} | own


def _lengths(recipe: Recipe, warmup: TimedWarmup, ruled: Change, global_batch: int) -> Iterator[Change]:
    samples, why, paper = round(ruled.after * recipe.num_train_samples), ruled.why, ruled.paper
    if warmup.samples is not None:
        yield Change("schedule.warmup.samples", warmup.samples, samples, why, paper)
    elif samples % global_batch == 0:
        yield Change("schedule.warmup.updates", warmup.updates, samples // global_batch, f"{why}, in updates of the new batch", paper)
    else:
        why = f"{why}; they are no whole number of updates of {global_batch:,}"
        yield Change("schedule.warmup.updates", warmup.updates, None, why, paper)
        yield Change("schedule.warmup.samples", None, samples, why, paper)
