"""Scaling rules: from a tuned recipe to the recipe for another batch."""

from bigbatch.core.methods import RULES
from bigbatch.scaling.change import Change, readable
from bigbatch.scaling.plan import Plan, plan
from bigbatch.scaling.warnings import PlanWarning, Remedy

__all__ = ["RULES", "Change", "Plan", "PlanWarning", "Remedy", "plan", "readable"]
