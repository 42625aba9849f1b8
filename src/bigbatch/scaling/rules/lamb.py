"""LAMB in place of the reference's optimizer, at its authors' rate, with LEGW's warm-up.

eta = 0.04 sqrt(B / 32768) (the authors' ResNet-50 run and their square-root rule), defaults for the rest, decay converted
(weight_decay.py); warm-up epochs times k; schedule of the reference. Nothing of it is tuned to the task.
A reference that is tuned with LAMB keeps its settings: its rate times sqrt(k), and the warm-up.
"""

import math

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.rules.switch import longer_warmup, root_of_k, switch


def lamb_lr(global_batch: int) -> float:
    """Eta for a batch.

    >>> lamb_lr(8192)
    0.02
    """
    return 0.04 * math.sqrt(global_batch / 32768)


@RULES.register("lamb")
def lamb(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    if recipe.optimizer.name == "lamb":
        return root_of_k(recipe, k)
    lr = lamb_lr(round(recipe.batch.global_batch * k))
    why = "LAMB: each layer moves by its own length times the rate, 0.04 sqrt(batch / 32768) (`bigbatch papers lamb`)"
    return switch(recipe, k, "lamb", {"lr": lr}, why, longer_warmup(recipe, k))
