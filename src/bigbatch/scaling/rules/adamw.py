r"""AdamW at another batch: the root of k in the rate, the second moment's half-life kept in samples, the total weight decay kept.

Paper:   Marek et al. 2025, Small Batch Size Training for Language Models, arXiv:2507.07101: beta2's half-life fixed in tokens.
Formula: beta2_k = beta2^k, at least 0.95 (or the reference's own, if that is less),   eta_k = sqrt(k) eta (Malladi et al. 2022,
         arXiv:2205.10287),   weight decay so that sum_t eta_t lambda, over the actual schedules, is the reference's.
Keeps:   the optimizer, beta1, eps, and the updates of the warm-up, up to half the run (LEGW).
Warm-up: on text/gpt at k = 16 the longest was the best: half the run 1.75 nats, a quarter 1.81, a tenth 2.07. On text/lstm, by which no
         rule was chosen, as many samples were far better: 1.53 against 2.89 (one seed each). So a warning says where it takes half the run.
Floor:   a beta2 whose half-life is of a few updates follows the noise: at k = 8, 0.95 would become 0.66. Sweeps upwards stop at 0.95
         in the field, and runs without a floor were seen to spike. Here, on text/gpt at k = 16 (0.99 to 0.95, one seed), keeping
         beta2 was 0.018 nats better.
Differs: a reference with another optimizer gets AdamW as under `adam`, whose settings are tuned for nothing.
"""

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change, kept_group
from bigbatch.scaling.rules.adam import adam_lr
from bigbatch.scaling.rules.switch import ADAMS, kept_shrinkage, longer_warmup, root_of_k, switch

PAPER = Paper(
    method="AdamW's beta2 by samples",
    title="Small Batch Size Training for Language Models: When Vanilla SGD Works, and Why Gradient Accumulation Is Wasteful",
    authors="Marek et al.",
    year=2025,
    arxiv="2507.07101",
    where="Section 3",
    study="studies/optimizers",
)
FLOOR = 0.95


def beta2_at(beta2: float, k: float) -> float:
    """The decay rate of the second moment for k times the batch.

    >>> beta2_at(0.999, 16), beta2_at(0.95, 8), beta2_at(0.9, 8), beta2_at(0.95, 1 / 512)  # doctest: +ELLIPSIS
    (0.984..., 0.95, 0.9, 0.99989...)
    """
    return float(max(beta2**k, min(FLOOR, beta2)))


def to_adamw(recipe: Recipe, k: float) -> list[Change]:
    """AdamW at its usual rate, for a reference that is tuned with none of its kind."""
    why = "AdamW: 0.001 at the reference's batch, times sqrt(k)"
    return switch(recipe, k, "adamw", {"lr": adam_lr(k)}, why, longer_warmup(recipe, k))


@RULES.register("adamw")
def adamw(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    if recipe.optimizer.name not in ADAMS:
        return to_adamw(recipe, k)
    before = recipe.get("optimizer.betas")
    after = (before[0], beta2_at(before[1], k))
    halves = f"beta2^k = {before[1] ** k:.4g}: as many samples to the half of a squared gradient's weight"
    why = halves if after[1] == before[1] ** k else f"{halves}; not below {min(FLOOR, before[1]):g}"
    betas = Change("optimizer.betas", before, after, why, PAPER)
    return [*kept_shrinkage(recipe, k, [*root_of_k(recipe, k), betas]), *kept_group(recipe, k)]
