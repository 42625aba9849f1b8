r"""Adam's square root rule: rate, betas and eps so that runs at two batches follow the same stochastic differential equation.

Paper:   Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, arXiv:2205.10287, Section 5.
Formula: eta_k = sqrt(k) eta,   1 - b_k = k (1 - b) for both betas,   eps_k = eps / sqrt(k),   schedules in samples.
         An update lasts eta^2 in the equation's time, so 1/k of the updates are as long as all of them.
Keeps:   the optimizer, the warm-up's samples, and the total decoupled decay sum_t eta_t lambda, over the actual schedules, which is the
         decay's part of the drift: lambda_k ~ sqrt(k) lambda. Adam's own decay is a part of the loss, and stays.
Limits:  the equation holds where eta and 1 - b are small. A beta is not below 0, and where k (1 - b) >= 0.5 a warning says so.
Differs: decoupled decay, the bound at 0 and the warning are ours; a reference with another optimizer gets AdamW as under `adamw`, whose
         settings are tuned for nothing.
"""

import math
from collections.abc import Sequence

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change, kept_group, scaled_rates
from bigbatch.scaling.rules.adamw import to_adamw
from bigbatch.scaling.rules.switch import ADAMS, kept_shrinkage

PAPER = Paper(
    method="Adam's square root rule",
    title="On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
    authors="Malladi et al.",
    year=2022,
    arxiv="2205.10287",
    where="Section 5",
    study="studies/optimizers",
)
NOT_SMALL = 0.5 - 1e-9
"""k (1 - beta) from which a moment averages two updates or fewer; a little less than 0.5, so that 5 (1 - 0.9) counts."""


def beta_at(beta: float, k: float) -> float:
    """A moment's decay rate for k times the batch.

    >>> beta_at(0.75, 2), beta_at(0.75, 4), beta_at(0.75, 8), beta_at(0.5, 0.5)
    (0.5, 0.0, 0.0, 0.75)
    """
    return max(0.0, 1 - k * (1 - beta))


def eps_at(eps: float, k: float) -> float:
    """What is added to the root of the second moment, for k times the batch: the gradient's noise shrinks by as much.

    >>> eps_at(1e-8, 4)
    5e-09
    """
    return eps / math.sqrt(k)


def outside(betas: Sequence[float], k: float) -> list[int]:
    """Numbers, 1 or 2, of the betas that leave the rule's range at k times the batch.

    >>> outside((0.9, 0.95), 4), outside((0.9, 0.95), 5), outside((0.9, 0.95), 10)
    ([], [1], [1, 2])
    """
    return [number for number, beta in enumerate(betas, 1) if k * (1 - beta) >= NOT_SMALL]


def largest_inside(betas: Sequence[float]) -> int:
    """The largest whole multiple of the batch that is in the rule's range.

    >>> largest_inside((0.9, 0.95)), largest_inside((0.95, 0.999)), largest_inside((0.0, 0.99))
    (4, 9, 0)
    """
    return math.ceil(NOT_SMALL / (1 - min(betas))) - 1


@RULES.register("sde")
def sde(recipe: Recipe, k: float) -> list[Change]:
    """What Malladi et al. change besides the batch."""
    if recipe.optimizer.name not in ADAMS:
        return to_adamw(recipe, k)
    betas, eps, root = recipe.get("optimizer.betas"), recipe.get("optimizer.eps"), math.sqrt(k)
    moments = f"1 - beta times k = {k:g}: the moments average as many samples"
    noise = f"divided by sqrt(k) = {root:g}, as the gradient's noise is"
    changes = [
        *scaled_rates(recipe, root, f"times sqrt(k) = {root:g}: as much noise in as many samples", PAPER),
        Change("optimizer.betas", betas, tuple(beta_at(beta, k) for beta in betas), moments, PAPER),
        Change("optimizer.eps", eps, eps_at(eps, k), noise, PAPER),
    ]
    return [*kept_shrinkage(recipe, k, changes), *kept_group(recipe, k)]
