"""Muon with SOAP's preconditioning before it, at the settings of rule `muon` but for longer steps of the matrices. This project's own rule.

    from SGD:          rate of the matrices 0.56 / sqrt(T), 1.4 times Muon's; the total shrinkage of their weight decay is the reference's
    from Adam, Muon:   the rates of rule `muon`: a step has the same root mean square
Why:                   directions in which gradients are always large are divided by that size before all are made alike, so that they take
                       less of the others' precision. studies/leaderboard shows what that is worth, and what was tried.
"""

from bigbatch.core.methods import OPTIMIZERS, RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change
from bigbatch.scaling.muon import muon, muon_like
from bigbatch.scaling.switch import ADAMS

LONGER = 1.4
"""Times Muon's rate."""

WHY = "Muon of a momentum that is preconditioned first, for a few per cent to a half more time an update and more state (`bigbatch papers soap`)"


@RULES.register("soap_muon")
def soap_muon(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    if recipe.optimizer.name == "soap_muon":
        return muon_like(recipe, k)
    changes = muon(recipe, k)
    longer = LONGER if recipe.optimizer.name not in (*ADAMS, "muon") else 1.0
    told = {
        "optimizer.name": lambda c: c._replace(after="soap_muon", why=WHY),
        "optimizer.lr": lambda c: c._replace(after=longer * c.after, why=f"{longer:g} x {c.why}" if longer != 1 else c.why),
        "optimizer.weight_decay": lambda c: c._replace(after=c.after / longer),
    }
    changes = [told[c.field](c) if c.field in told else c for c in changes]
    if recipe.optimizer.name == "muon":
        changes = [Change("optimizer.name", "muon", "soap_muon", WHY), *changes]
    fields = OPTIMIZERS["soap_muon"].section.model_fields
    own = [name for name in fields if name not in OPTIMIZERS["muon"].section.model_fields]
    return [*changes, *(Change(f"optimizer.{name}", None, fields[name].default, "soap_muon's default") for name in own)]
