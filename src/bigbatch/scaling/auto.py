"""Auto: what the studies in this repository show to hold furthest, untuned, for references with the recipe's optimizer (evidence.py).

k >= 2      the rule that held furthest; where it changes the optimizer, the plan says so first, and names the rule that keeps it
1 < k < 2   linear for SGD, and the rule that keeps the optimizer for all others: nothing was measured so near
k < 1       sqrt, or the rule of the optimizer's own: nothing was measured for smaller batches
Where no study stands behind an optimizer, a rule that keeps it, and words that say so.
"""

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import GROWN
from bigbatch.scaling.evidence import EVIDENCE, STUDY

OWN_RULES = {"adamw": "adamw", "adamp": "adamw", "adam": "adamw", "muon": "muon", "soap_muon": "muon"}
"""Rules made for references with an optimizer, and which keep it."""


def auto(recipe: Recipe, k: float) -> tuple[str, str]:
    """Name of the rule to use for k times the batch, and why.

    >>> [auto(Recipe.named("digits/mlp"), k)[0] for k in (0.5, 1.5, 4.0)]
    ['sqrt', 'linear', 'muon']
    >>> auto(Recipe.named("digits/mlp").replace({"optimizer.name": "lamb"}), 4.0)
    ('sqrt', 'no study stands behind a reference with lamb; sqrt keeps it')
    """
    name = recipe.optimizer.name
    own, evidence = OWN_RULES.get(name, "sqrt"), EVIDENCE.get(name)
    if k < 1:
        return own, f"k = {k:g}: the batch does not grow, and nothing was measured there"
    if k < GROWN:
        return ("linear" if name == "sgd" else own), f"k = {k:g}: so near to the reference its optimizer is kept"
    if evidence is None:
        return own, f"no study stands behind a reference with {name}; {own} keeps it"
    reach = f"not shown to lose up to {evidence.reach:g} times" if evidence.reach > 1 else "though it lost at every multiple measured"
    kept = "" if evidence.rule == evidence.keeps else f"; {evidence.keeps} keeps {name}"
    return evidence.rule, f"held furthest, untuned, on {evidence.models} with {name} ({STUDY}), {reach}{kept}"


def keeper(name: str) -> str:
    """The rule to take for a reference with this optimizer if it is to stay.

    >>> keeper("sgd"), keeper("lamb")
    ('legw', 'sqrt')
    """
    return EVIDENCE[name].keeps if name in EVIDENCE else OWN_RULES.get(name, "sqrt")


def fallbacks(name: str) -> tuple[str, ...]:
    """By the reference's optimizer: what to take where a script can't follow the first choice, the best first."""
    return tuple(
        rule for rule in dict.fromkeys((keeper(name), *(("linear",) if name == "sgd" else ()), "legw", "sqrt", "none")) if rule in RULES
    )
