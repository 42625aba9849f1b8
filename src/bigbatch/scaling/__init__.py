"""Scaling rules: from a tuned recipe to the recipe for another batch."""

from bigbatch.scaling.legw import legw
from bigbatch.scaling.linear import linear
from bigbatch.scaling.none import none
from bigbatch.scaling.plan import Change, Plan, Rule, plan, readable
from bigbatch.scaling.sqrt import sqrt

RULES: dict[str, Rule] = {"none": none, "linear": linear, "sqrt": sqrt, "legw": legw}
"""Name of every rule that `plan` takes, besides "auto"."""

__all__ = ["RULES", "Change", "Plan", "plan", "readable"]
