r"""Square-root scaling: the rate grows with the square root of the batch, so that the updates keep their covariance.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 4.1 (first in Krizhevsky 2014).
Formula: eta_k = sqrt(k) eta,   since cov(dw) ~ eta^2 / batch.
Keeps:   everything else, and normalises over the reference's batch (ghost batch norm, Section 4.2).
Differs: without "regime adaptation" (k times as many epochs; regime.py), which keeps the updates and so saves no work. The paper's
         released code also clips the global gradient norm at 5, in the reference as well; set optimizer.clip_norm for that.
"""

import math

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change, kept_group, scaled_rates

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


@RULES.register("sqrt")
def sqrt(recipe: Recipe, k: float) -> list[Change]:
    """What Hoffer et al. change besides the batch, without longer training."""
    why = f"times sqrt(k) = {math.sqrt(k):g}: updates keep their covariance"
    return [*scaled_rates(recipe, sqrt_lr(1.0, k), why, PAPER), *kept_group(recipe, k, PAPER)]
