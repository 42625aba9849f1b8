"""Auto: choose among the published rules by their own limits of validity.

The first of these that applies:
    optimizer other than SGD                                     sqrt    the linear rule is derived for SGD
    k <= 4, and five epochs of warm-up are at most half the run  linear  holds to 4 on our short runs (studies/scaling_rules), and
                                                                         to 32 on runs of 90 epochs (Goyal et al.)
    a warm-up of k e epochs is at most half the run              legw    needs a reference with a warm-up of e epochs
    none of them                                                 sqrt
"""

from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import ConstantWarmup, GradualWarmup
from bigbatch.scaling.legw import legw_warmup_epochs
from bigbatch.scaling.linear import WARMUP_EPOCHS

LARGEST_LINEAR_MULTIPLE = 4.0


def auto(recipe: Recipe, k: float) -> tuple[str, str]:
    """Name of the rule to use for k times the batch, and why.

    >>> auto(Recipe.named("digits/mlp"), 4.0)[0]
    'linear'
    """
    half = recipe.total_epochs / 2
    if recipe.optimizer.name != "sgd":
        return "sqrt", f"{recipe.optimizer.name} is not SGD, for which the linear rule is derived"
    if k <= LARGEST_LINEAR_MULTIPLE and half >= WARMUP_EPOCHS:
        return "linear", f"SGD, k = {k:g} is at most {LARGEST_LINEAR_MULTIPLE:g} and the warm-up of {WARMUP_EPOCHS:g} epochs fits"
    warmup = recipe.schedule.warmup
    if isinstance(warmup, GradualWarmup | ConstantWarmup):
        epochs = legw_warmup_epochs(warmup.epochs, k)
        if epochs <= half:
            return "legw", f"k = {k:g} is beyond linear scaling here and a warm-up of {epochs:g} epochs fits"
    return "sqrt", f"k = {k:g} leaves no room for the warm-up that the linear rule or LEGW need"
