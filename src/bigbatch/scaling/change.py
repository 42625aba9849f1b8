"""What a rule says: one changed field, with its reason and its paper."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe


class Change(NamedTuple):
    """One field of the recipe that a rule changes."""

    field: str  # dotted name, such as "optimizer.lr"
    before: Any  # value in the reference; None where it was absent
    after: Any
    why: str
    paper: Paper | None = None


Rule = Callable[[Recipe, float], list[Change]]
"""A rule takes the reference recipe and the multiple k and returns what changes besides the batch."""


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
