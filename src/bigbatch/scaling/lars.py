"""LARS in place of the reference's optimizer, at the rate of its authors' lab, with LEGW's warm-up.

gamma = 4 sqrt(B / 512), trust coefficient 0.001 (You's lab, ResNet-50 on ImageNet: 4 at 512 to 32 at 32,768);
warm-up epochs times k; momentum, decay and schedule of the reference. Nothing of it is tuned to the task.
"""

import math

from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.switch import longer_warmup, switch


def lars_lr(global_batch: int) -> float:
    """Gamma for a batch.

    >>> lars_lr(8192)
    16.0
    """
    return 4 * math.sqrt(global_batch / 512)


def lars(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    lr = lars_lr(round(recipe.batch.global_batch * k))
    settings = {
        "lr": lr,
        "weight_decay": recipe.optimizer.weight_decay,
        "momentum": recipe.get("optimizer.momentum") or 0.9,
        "adapt_norms_and_biases": True,
    }
    why = "LARS: layer-wise rates, 4 sqrt(batch / 512), as in its authors' ImageNet recipes (`bigbatch papers lars`)"
    return [*switch(recipe, "lars", settings, why), *longer_warmup(recipe, k)]
