"""Scaling rules: from a tuned recipe to the recipe for another batch."""

from bigbatch.scaling.change import Change, readable
from bigbatch.scaling.plan import RULES, Plan, plan

__all__ = ["RULES", "Change", "Plan", "plan", "readable"]
