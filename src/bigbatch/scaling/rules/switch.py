"""What the rules that change the optimizer have in common."""

from collections.abc import Iterable, Mapping
from typing import Any

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import LayerWise
from bigbatch.scaling.change import Change, scaled_rates
from bigbatch.scaling.keep_samples import with_batch
from bigbatch.scaling.rules.legw import legw
from bigbatch.scaling.rules.weight_decay import KEPT_SHRINKAGE, converted_decay, decay_for_shrinkage, total_shrinkage

ADAMS = ("adam", "adamw", "adamp")
"""Optimizers whose rates, betas and eps mean the same."""


def switch(recipe: Recipe, k: float, name: str, settings: Mapping[str, Any], why: str, others: Iterable[Change] = ()) -> list[Change]:
    """Another optimizer: `settings`, what keeps its meaning from the old one, its own defaults for the rest, and the decay converted.

    Args:
        recipe: The reference.
        k: Multiple of its batch.
        name: Of the new optimizer.
        settings: Its fields that the rule sets.
        why: Reason for the change.
        others: What the rule changes besides the optimizer; the decay is converted for the schedule that results.

    Returns:
        All changes, `others` included.
    """
    old, new = recipe.optimizer, OPTIMIZERS[name].section
    fields = {field: info.default for field, info in new.model_fields.items() if not info.is_required()}
    kept = ["clip_norm", *(["betas", "eps"] if {old.name, name} <= set(ADAMS) else [])]
    if new.groups_by == old.groups_by:
        kept.append("groups")
    if not issubclass(new, LayerWise):  # LARS's and LAMB's authors leave norms and biases out
        kept.append("decay_norms_and_biases")
    same = {field: getattr(old, field) for field in kept if field in fields and hasattr(old, field)}
    fields |= {**same, **settings, "name": name}
    reasons = {field: "with it" if field in settings else "kept" if field in same else f"{name}'s default" for field in fields}
    order = ["name", *(field for field in fields if field != "name")]
    changes = [
        Change(f"optimizer.{field}", recipe.get(f"optimizer.{field}"), fields[field], {**reasons, "name": why}[field]) for field in order
    ]
    changes += others
    decay = converted_decay(recipe, _larger(recipe, k, changes))
    return [c._replace(after=decay.value, why=decay.why) if c.field == "optimizer.weight_decay" else c for c in changes]


def kept_shrinkage(recipe: Recipe, k: float, changes: list[Change]) -> list[Change]:
    """The changes, and the decoupled weight decay with which the run still shrinks the weights by as much as the reference."""
    if (total := total_shrinkage(recipe)) is None:
        return changes
    decay = decay_for_shrinkage(_larger(recipe, k, changes), total)
    return [*changes, Change("optimizer.weight_decay", recipe.optimizer.weight_decay, decay, KEPT_SHRINKAGE)]


def _larger(recipe: Recipe, k: float, changes: list[Change]) -> Recipe:
    return with_batch(recipe, round(recipe.batch.global_batch * k)).replace({c.field: c.after for c in changes})


def root_of_k(recipe: Recipe, k: float, paper: Paper | None = None) -> list[Change]:
    """For a recipe that is tuned on the rule's optimizer already: its own rates times sqrt(k), and LEGW's warm-up."""
    return [*scaled_rates(recipe, k**0.5, f"the reference's, times sqrt(k) = {k**0.5:g}", paper), *longer_warmup(recipe, k)]


def longer_warmup(recipe: Recipe, k: float) -> list[Change]:
    """LEGW's changes but for the rate: a warm-up of as many updates, at most half the run, and the reference's ghost batch."""
    half = max(recipe.total_epochs / 2, recipe.warmup_epochs)
    changes = [change for change in legw(recipe, k) if not change.field.startswith("optimizer.")]
    return [c._replace(after=half, why="half the run") if c.field == "schedule.warmup.epochs" and c.after > half else c for c in changes]
