"""No rule: only the batch changes. The control arm of every comparison."""

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change


@RULES.register("none")
def none(recipe: Recipe, k: float) -> list[Change]:  # noqa: ARG001 a rule takes both
    """Nothing changes besides the batch.

    >>> none(Recipe.named("digits/mlp"), 8.0)
    []
    """
    return []
