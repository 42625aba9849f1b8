"""Adam in place of the reference's optimizer: its usual rate of 0.001 at the reference's batch, times the square root of k."""

import math

from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.switch import longer_warmup, switch


def adam_lr(k: float) -> float:
    """The rate for k times the batch.

    >>> adam_lr(64)
    0.008
    """
    return 0.001 * math.sqrt(k)


def adam(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    why = "Adam: 0.001 at the reference's batch, times sqrt(k)"
    return [*switch(recipe, "adam", {"lr": adam_lr(k)}, why), *longer_warmup(recipe, k)]


def adamp(recipe: Recipe, k: float) -> list[Change]:
    """The same with AdamP."""
    why = "AdamP: 0.001 at the reference's batch, times sqrt(k) (`bigbatch papers adamp`)"
    return [*switch(recipe, "adamp", {"lr": adam_lr(k), "weight_decay": 0.01}, why), *longer_warmup(recipe, k)]
