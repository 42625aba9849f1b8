r"""AdamW's timescale kept: the weight decay grows with the batch, the rate stays.

Paper:   Bergsma et al. 2025, Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training, arXiv:2505.13738.
Formula: tau = B / (eta lambda D)       B: batch, D: data of the run, in one unit; eta: peak rate; lambda: weight_decay
         AdamW's weights are a moving average of its updates over tau of the run; D and eta kept, tau is kept by lambda_k = k lambda.
Keeps:   everything else: rate, betas, and the warm-up's samples. `adamw` and `sde` keep tau too, with a rate that grows by sqrt(k).
Limits:  the paper finds it to hold up to a batch that grows with the data; beyond that, tau shrinks.
Differs: the best tau, which the paper fits for language models by tokens per parameter, is not looked up: the reference's is kept.
         AdamP, SGDP and the matrices of Muon, which decay as AdamW does, are treated alike. A reference without decay, or whose decay is
         added to the gradient, has no tau: only the batch changes, and a warning says so.
"""

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change, kept_group

PAPER = Paper(
    method="AdamW's timescale",
    title="Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training",
    authors="Bergsma et al.",
    year=2025,
    arxiv="2505.13738",
    where="tau = B / (eta lambda D)",
    study="studies/optimizers",
)


def timescale_decay(weight_decay: float, k: float) -> float:
    """The weight decay for k times the batch.

    >>> timescale_decay(0.1, 8)
    0.8
    """
    return k * weight_decay


def without_timescale(recipe: Recipe) -> str | None:
    """Why the recipe has no timescale; None where it has one.

    >>> without_timescale(Recipe.named("digits/mlp"))
    'the reference has no weight decay'
    """
    optimizer = recipe.optimizer
    if optimizer.weight_decay == 0:
        return "the reference has no weight decay"
    if optimizer.name == "sgd" or optimizer.decay_divisor is None:
        return f"the weight decay of {optimizer.name} is not decoupled from the gradient, as AdamW's is"
    return None


@RULES.register("timescale")
def timescale(recipe: Recipe, k: float) -> list[Change]:
    """What Bergsma et al. change besides the batch."""
    changes = [*kept_group(recipe, k)]
    if without_timescale(recipe) is None:
        decay = recipe.optimizer.weight_decay
        why = f"times k = {k:g}: the weights average the updates of as many samples, at the reference's rate"
        changes.append(Change("optimizer.weight_decay", decay, timescale_decay(decay, k), why, PAPER))
    return changes
