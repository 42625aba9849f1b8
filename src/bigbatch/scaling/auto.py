"""Auto: what the studies in this repository show to hold accuracy furthest, untuned.

k > 1   muon   studies/optimizers: of nine methods, untuned, the only one shown to hold beyond 4 times the batch
k < 1   sqrt   nothing was measured for smaller batches; the mildest rule
"""

from bigbatch.recipe import Recipe

LARGEST_WITHOUT_LOSS = 16.0
"""Largest multiple at which no shipped task was shown to lose more than the margin under `muon` (held on four, undecided on the LSTM)."""

STUDY = "studies/optimizers"


def auto(recipe: Recipe, k: float) -> tuple[str, str]:
    """Name of the rule to use for k times the batch, and why.

    >>> auto(Recipe.named("digits/mlp"), 4.0)[0]
    'muon'
    """
    if k <= 1:
        return "sqrt", f"k = {k:g}: the batch does not grow, and nothing was measured there"
    if recipe.optimizer.name == "muon":
        return "muon", "the recipe is Muon's already: its rates for the new number of updates"
    return "muon", f"of nine methods it held accuracy furthest without tuning ({STUDY})"


def doubt(k: float) -> str | None:
    """What the studies say against k times the batch, with a remedy; None where they say nothing against it."""
    if k <= LARGEST_WITHOUT_LOSS:
        return None
    return (
        f"{k:g} times the batch: on short runs no method held that on every task ({STUDY}); {LARGEST_WITHOUT_LOSS:g} times is the "
        "largest at which none of them was shown to lose: choose that, or train longer"
    )
