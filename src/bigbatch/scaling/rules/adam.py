"""Adam or AdamP in place of the reference's optimizer: their usual rate of 0.001 at the reference's batch, times the square root of k.

Weight decay is converted (weight_decay.py); since Adam's own, added to the gradient, has no equivalent, a reference with decay gets
AdamW. A reference that is tuned with Adam, AdamW or AdamP keeps its settings: its own rate times sqrt(k), and its total shrinkage.
"""

import math

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.rules.switch import ADAMS, kept_shrinkage, longer_warmup, root_of_k, switch


def adam_lr(k: float) -> float:
    """The rate for k times the batch.

    >>> adam_lr(64)
    0.008
    """
    return 0.001 * math.sqrt(k)


@RULES.register("adam")
def adam(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    own = recipe.optimizer.name
    if own in ("adam", "adamw"):
        return kept_shrinkage(recipe, k, root_of_k(recipe, k))
    name = "adamw" if recipe.optimizer.weight_decay else "adam"
    return _switch(recipe, k, name, f"{'AdamW' if name == 'adamw' else 'Adam'}: {_rate_in_words(own)}")


@RULES.register("adamp")
def adamp(recipe: Recipe, k: float) -> list[Change]:
    """The same with AdamP."""
    own = recipe.optimizer.name
    if own == "adamp":
        return kept_shrinkage(recipe, k, root_of_k(recipe, k))
    return _switch(recipe, k, "adamp", f"AdamP: {_rate_in_words(own)} (`bigbatch papers adamp`)")


def _rate_in_words(own: str) -> str:
    return "the reference's rate, times sqrt(k)" if own in ADAMS else "0.001 at the reference's batch, times sqrt(k)"


def _switch(recipe: Recipe, k: float, name: str, why: str) -> list[Change]:
    lr = recipe.optimizer.lr * math.sqrt(k) if recipe.optimizer.name in ADAMS else adam_lr(k)
    return switch(recipe, k, name, {"lr": lr}, why, longer_warmup(recipe, k))
