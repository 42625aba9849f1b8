"""The new batch with the same samples: what every plan changes, whatever its rule."""

from collections.abc import Iterator

from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change


def keep_samples(recipe: Recipe, global_batch: int) -> Iterator[Change]:
    """The batch, and the fields that must fit it; the run sees exactly as many samples as before.

    >>> [c.field for c in keep_samples(Recipe.named("digits/mlp"), 64)]
    ['batch.global_batch']
    """
    before = recipe.batch.global_batch
    yield Change("batch.global_batch", before, global_batch, f"the batch to plan for: {global_batch / before:g} times the reference's")
    micro, ghost = recipe.batch.micro_batch, recipe.batch.ghost_batch
    if isinstance(micro, int) and (micro > global_batch or ghost == "global"):
        yield Change("batch.micro_batch", micro, "auto", "a forward pass must fit the new batch; it never changes the update")
    if isinstance(ghost, int) and ghost > global_batch:
        yield Change("batch.ghost_batch", ghost, global_batch, "a normalisation group can't be larger than the batch")
    noise = recipe.batch.noise_batch
    if noise is not None and noise >= global_batch:
        yield Change("batch.noise_batch", noise, None, "the batch is no larger than that: its gradient is noisy enough")
    if recipe.budget.updates is not None:
        yield from _same_samples(recipe.budget.updates, recipe.total_samples, global_batch)


def _same_samples(updates: int, total: int, global_batch: int) -> Iterator[Change]:
    if total % global_batch == 0:
        yield Change("budget.updates", updates, total // global_batch, f"the same {total:,} samples, in updates of the new batch")
    else:
        why = f"the same {total:,} samples; they are no whole number of updates of {global_batch:,}, so the last update is smaller"
        yield Change("budget.updates", updates, None, why)
        yield Change("budget.samples", None, total, why)


def with_batch(recipe: Recipe, global_batch: int) -> Recipe:
    """The recipe with nothing changed besides the batch, which stays as it is: a rule may name batches that the user is yet to set.

    >>> with_batch(Recipe.named("digits/mlp"), 64).num_updates
    406
    """
    return recipe.replace({"batch.rule": None}, {change.field: change.after for change in keep_samples(recipe, global_batch)})
