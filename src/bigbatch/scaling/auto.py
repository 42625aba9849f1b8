"""Auto: what the studies in this repository show to hold accuracy furthest, untuned.

k >= 2      muon    studies/optimizers: of nine methods, untuned, the only one shown to hold beyond 4 times the batch
1 < k < 2   linear for SGD, sqrt for all others: nothing was measured so near, and the tuned optimizer is kept
k < 1       sqrt    nothing was measured for smaller batches; the mildest rule
A recipe that is tuned with Muon, LARS, LAMB or AdamP and hardly grows keeps its optimizer too.
"""

from bigbatch.recipe import Recipe
from bigbatch.scaling.change import GROWN

LARGEST_WITHOUT_LOSS = 16.0
"""Largest multiple at which no shipped task was shown to lose more than the margin under `muon` (held on four, undecided on the LSTM)."""

STUDY = "studies/optimizers"
FALLBACKS = {"sgd": ("legw", "linear", "sqrt"), "adam": ("sqrt",)}
"""By the reference's optimizer (others as Adam): what to take where a script can't follow the first choice, the best first by STUDY."""
REACH = "five small image tasks with SGD as their reference"


def auto(recipe: Recipe, k: float) -> tuple[str, str]:
    """Name of the rule to use for k times the batch, and why.

    >>> [auto(Recipe.named("digits/mlp"), k)[0] for k in (0.5, 1.5, 4.0)]
    ['sqrt', 'linear', 'muon']
    """
    name = recipe.optimizer.name
    if k < 1:
        return "sqrt", f"k = {k:g}: the batch does not grow, and nothing was measured there"
    if name == "muon":
        return "muon", "the recipe is Muon's already: its own rates, for the new number of updates"
    if k < GROWN:
        return ("linear" if name == "sgd" else "sqrt"), f"k = {k:g}: so near to the reference its optimizer is kept"
    return "muon", f"of nine methods it held accuracy furthest without tuning, on {REACH} ({STUDY}); --rule sqrt keeps {name}"


def doubt(k: float) -> str | None:
    """What the studies say against k times the batch; None where they say nothing against it."""
    if k <= LARGEST_WITHOUT_LOSS:
        return None
    return (
        f"{k:g} times the batch: on short runs no method held that on every task ({STUDY}); {LARGEST_WITHOUT_LOSS:g} times is the "
        "largest at which none of them was shown to lose"
    )
