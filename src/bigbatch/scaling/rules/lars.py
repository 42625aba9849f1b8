"""LARS in place of the reference's optimizer, at the rate of its authors' lab, with LEGW's warm-up.

gamma = 4 sqrt(B / 512), trust coefficient 0.001 (You's lab, ResNet-50 on ImageNet: 4 at 512 to 32 at 32,768);
warm-up epochs times k; schedule of the reference, and its momentum, or 0.9 where it has none; decay converted (weight_decay.py). Nothing
of it is tuned to the task.
A reference that is tuned with LARS keeps its settings: its rate times sqrt(k), and the warm-up.
"""

import math

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.rules.switch import longer_warmup, root_of_k, switch


def lars_lr(global_batch: int) -> float:
    """Gamma for a batch.

    >>> lars_lr(8192)
    16.0
    """
    return 4 * math.sqrt(global_batch / 512)


@RULES.register("lars")
def lars(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    if recipe.optimizer.name == "lars":
        return root_of_k(recipe, k)
    settings = {
        "lr": lars_lr(round(recipe.batch.global_batch * k)),
        "momentum": recipe.get("optimizer.momentum") or 0.9,
        "adapt_norms_and_biases": True,
    }
    why = "LARS: layer-wise rates, 4 sqrt(batch / 512), as in its authors' ImageNet recipes (`bigbatch papers lars`)"
    return switch(recipe, k, "lars", settings, why, longer_warmup(recipe, k))
