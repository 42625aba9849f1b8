r"""Square-root scaling: the rate grows with the square root of the batch, so that the updates keep their covariance.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 4.1 (first in Krizhevsky 2014).
Formula: eta_k = sqrt(k) eta,   since cov(dw) ~ eta^2 / batch.
Keeps:   everything else, and normalises over the reference's batch (ghost batch norm, Section 4.2).
Differs: without "regime adaptation" (k times as many epochs; regime.py), which keeps the updates and so saves no work. The paper's
         released code also clips the global gradient norm at 5, in the reference as well; set optimizer.clip_norm for that.
"""

import math

from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change

PAPER = Paper(
    method="Square-root scaling",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 4.1",
    study="studies/scaling_rules",
)


def sqrt_lr(lr: float, k: float) -> float:
    """The rate for k times the batch.

    >>> sqrt_lr(0.1, 64)
    0.8
    """
    return math.sqrt(k) * lr


def sqrt(recipe: Recipe, k: float) -> list[Change]:
    """What Hoffer et al. change besides the batch, without longer training."""
    lr = recipe.optimizer.lr
    changes = [
        Change("optimizer.lr", lr, sqrt_lr(lr, k), f"times sqrt(k) = {math.sqrt(k):g}: updates keep their covariance", PAPER),
    ]
    if recipe.batch.ghost_batch == "global":
        why = "keep the samples per normalisation group of the reference (ghost batch norm)"
        changes.append(Change("batch.ghost_batch", "global", recipe.batch.global_batch, why, PAPER))
    return changes
