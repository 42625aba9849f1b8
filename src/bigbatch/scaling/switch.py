"""What the rules that change the optimizer have in common."""

from collections.abc import Mapping
from typing import Any

from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import KINDS
from bigbatch.scaling.change import Change
from bigbatch.scaling.legw import legw


def switch(recipe: Recipe, name: str, settings: Mapping[str, Any], why: str) -> list[Change]:
    """Another optimizer: `settings`, and its own defaults for the fields that keep no meaning. Clipping is kept."""
    fields = {field: info.default for field, info in KINDS["optimizer"][name].model_fields.items() if not info.is_required()}
    fields |= {"clip_norm": recipe.optimizer.clip_norm, **settings, "name": name}
    reasons = {field: "with it" if field in settings else f"{name}'s default" for field in fields} | {"name": why, "clip_norm": "kept"}
    order = ["name", *(field for field in fields if field != "name")]
    return [Change(f"optimizer.{field}", recipe.get(f"optimizer.{field}"), fields[field], reasons[field]) for field in order]


def longer_warmup(recipe: Recipe, k: float) -> list[Change]:
    """LEGW's changes but for the rate: a warm-up of as many updates, at most half the run, and the reference's ghost batch."""
    half = recipe.total_epochs / 2
    changes = [change for change in legw(recipe, k) if change.field != "optimizer.lr"]
    return [c._replace(after=half, why="half the run") if c.field == "schedule.warmup.epochs" and c.after > half else c for c in changes]
