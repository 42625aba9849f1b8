"""What a rule says: one changed field, with its reason and its paper."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe

GROWN = 2.0
"""Multiple from which a rule also makes the changes that its paper makes for large batches, such as clipping.

Below it only rates, lengths and decay change, and all of them tend to the reference's as k tends to 1.
"""


class Change(NamedTuple):
    """One field of the recipe that a rule changes."""

    field: str  # dotted name, such as "optimizer.lr"
    before: Any  # value in the reference; None where it was absent
    after: Any
    why: str
    paper: Paper | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the paper as a citation."""
        return {**self._asdict(), "paper": self.paper.short if self.paper else ""}


Rule = Callable[[Recipe, float], list[Change]]
"""A rule takes the reference recipe and the multiple k and returns what changes besides the batch."""


def scaled_rates(recipe: Recipe, factor: float, why: str, paper: Paper | None = None) -> Iterator[Change]:
    """Every learning rate of the recipe's optimizer times a factor: Muon has one for its matrices and one for the rest.

    >>> [(c.field, c.after) for c in scaled_rates(Recipe.named("digits/mlp"), 2.0, "twice")]
    [('optimizer.lr', 0.2)]
    """
    for name in recipe.optimizer.rates:
        rate = getattr(recipe.optimizer, name)
        yield Change(f"optimizer.{name}", rate, factor * rate, why, paper)


def kept_group(recipe: Recipe, k: float, paper: Paper | None = None) -> Iterator[Change]:
    """The reference's batch as the normalisation group of a larger batch, where it normalised over the whole batch."""
    if recipe.batch.ghost_batch == "global" and k > 1:
        why = "keep the samples per normalisation group of the reference: they are part of the loss"
        yield Change("batch.ghost_batch", "global", recipe.batch.global_batch, why, paper)


def readable(value: Any) -> str:
    """A field's value as it would stand in a recipe file; "absent" for None.

    >>> [readable(v) for v in (None, True, 0.1 + 0.2, 3, "cosine")]
    ['absent', 'true', '0.3', '3', 'cosine']
    """
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
