"""Muon with SOAP's preconditioning before it, at the settings of rule `muon` but for longer steps of the matrices. This project's own rule.

    from SGD:          rate of the matrices 0.56 / sqrt(T), 1.4 times Muon's; the total shrinkage of their weight decay is the reference's
    from Adam, Muon:   the rates of rule `muon`: a step has the same root mean square
Why:                   directions in which gradients are always large are divided by that size before all are made alike, so that they take
                       less of the others' precision. studies/leaderboard shows what that is worth, and what was tried.
"""

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.rules.muon import orthogonalised

LONGER = 1.4
"""Times Muon's rate."""

WHY = "directions in which gradients are always large no longer hide the others; more time and state (`bigbatch papers soap_muon`)"


@RULES.register("soap_muon")
def soap_muon(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    return orthogonalised(recipe, k, "soap_muon", WHY, longer=LONGER)
