"""Muon in place of the reference's optimizer, at rates that follow from the number of updates, or from Adam's. This project's own rule.

    T updates:   rate of the matrices 0.4 / sqrt(T),   rate of the rest (AdamW) 0.15 / sqrt(T),   momentum 0.85
                 warm-up over two updates, then straight down to zero
                 weight decay of the matrices: over the run they shrink by as much as in the reference (weight_decay.py)
Why:             an orthogonalised step has a fixed length whatever the gradient, so the reference's rate and batch do not matter;
                 T steps of random sign travel eta sqrt(T), and that length is kept. studies/optimizers shows how far it holds, and
                 what was tried beside it.
A reference that is tuned with Adam, AdamW or AdamP is information: a step of Muon's matrices has a root mean square of 0.2 eta, as AdamW's
has, so rate and decay carry over (Liu et al. 2025, arXiv:2502.16982, Section 2.2). Both of Muon's rates are Adam's times sqrt(k); betas,
eps, the updates of the warm-up (up to half the run), the schedule's decay, the model and the total shrinkage of the matrices are kept; the
momentum is 0.95, with which that was published. Weights that are no matrices have no decay, as always under Muon.
A reference that is tuned with Muon keeps its settings: both its rates times sqrt(k), which is the same law, its warm-up, schedule and
momentum, and its total shrinkage.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change, kept_group, scaled_rates
from bigbatch.scaling.keep_samples import with_batch
from bigbatch.scaling.rules.switch import ADAMS, kept_shrinkage, longer_warmup, switch

WARMUP_UPDATES = 2
MOMENTUM = 0.85
MOMENTUM_FROM_ADAM = 0.95
WHY = "every direction of a matrix moves alike, whatever its gradient's size (`bigbatch papers muon`)"


class MuonRates(NamedTuple):
    """Peak rates."""

    lr: float  # of the orthogonalised matrices
    adam_lr: float  # of the rest


def muon_rates(num_updates: int) -> MuonRates:
    """The rates for a run of so many updates.

    >>> muon_rates(100)
    MuonRates(lr=0.04, adam_lr=0.015)
    """
    return MuonRates(0.4 / math.sqrt(num_updates), 0.15 / math.sqrt(num_updates))


def matched_rates(lr: float, k: float) -> MuonRates:
    """The rates for k times the batch from Adam's: steps of the same root mean square, times sqrt(k).

    >>> matched_rates(0.001, 4)
    MuonRates(lr=0.002, adam_lr=0.002)
    """
    return MuonRates(math.sqrt(k) * lr, math.sqrt(k) * lr)


@RULES.register("muon")
def muon(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    return orthogonalised(recipe, k, "muon", WHY)


def orthogonalised(recipe: Recipe, k: float, name: str, why: str, *, longer: float = 1.0) -> list[Change]:
    """What changes besides the batch, for Muon or an optimizer with steps like its own.

    Args:
        recipe: The reference.
        k: Multiple of its batch.
        name: Of the optimizer.
        why: It is taken.
        longer: Its steps of the matrices, in units of Muon's, where they follow from the number of updates.
    """
    old = recipe.optimizer
    if old.groups_by == "muon":  # orthogonalised already; rule muon keeps any of that kind
        other = [] if name in ("muon", old.name) else [Change("optimizer.name", old.name, name, why)]
        return [*other, *_times_root(recipe, k)]
    if recipe.optimizer.name in ADAMS:
        return _from_adam(recipe, k, name, why)
    batch = round(recipe.batch.global_batch * k)
    updates = with_batch(recipe, batch).num_updates
    lr, adam_lr = muon_rates(updates)
    settings = {"lr": longer * lr, "adam_lr": adam_lr, "momentum": MOMENTUM}
    reasons = {
        "optimizer.lr": f"{0.4 * longer:g} / sqrt({updates}): of the orthogonalised matrices",
        "optimizer.adam_lr": f"0.15 / sqrt({updates}): of all else, by AdamW",
        "optimizer.momentum": "shorter, for few updates",
    }
    changes = switch(recipe, k, name, settings, why, _others(recipe, k, batch))
    return [c._replace(why=reasons.get(c.field, c.why)) for c in changes]


def _times_root(recipe: Recipe, k: float) -> list[Change]:
    """From a reference whose steps are orthogonalised already."""
    why = f"the reference's, times sqrt(k) = {k**0.5:g}: 1/k of the updates, each as much longer"
    return [*kept_shrinkage(recipe, k, [*scaled_rates(recipe, k**0.5, why)]), *kept_group(recipe, k)]


def _from_adam(recipe: Recipe, k: float, name: str, why: str) -> list[Change]:
    old, same = recipe.optimizer.name, {field: recipe.get(f"optimizer.{field}") for field in ("betas", "eps")}
    settings = {**matched_rates(recipe.optimizer.lr, k)._asdict(), "momentum": MOMENTUM_FROM_ADAM, **same}
    reasons = {
        "optimizer.lr": f"of {old}, times sqrt(k) = {k**0.5:g}: a step of the orthogonalised matrices has as large a root mean square",
        "optimizer.adam_lr": f"of {old}, times sqrt(k) = {k**0.5:g}: of all else, by AdamW",
        "optimizer.momentum": "with which rates were shown to carry over (Liu et al. 2025)",
        **{f"optimizer.{field}": "kept, of all else" for field in same},
    }
    changes = switch(recipe, k, name, settings, why, longer_warmup(recipe, k))
    return [c._replace(why=reasons.get(c.field, c.why)) for c in changes]


def _others(recipe: Recipe, k: float, batch: int) -> Iterator[Change]:
    few = f"{WARMUP_UPDATES} updates; an orthogonalised step can't explode"
    down = "to zero: the last steps average the noise away"
    yield Change("schedule.warmup.kind", recipe.schedule.warmup.kind, "gradual", "a straight line, per update")
    yield Change("schedule.warmup.epochs", recipe.get("schedule.warmup.epochs"), WARMUP_UPDATES * batch / recipe.num_train_samples, few)
    yield Change(
        "schedule.warmup.start_factor", recipe.get("schedule.warmup.start_factor"), 1 / (WARMUP_UPDATES + 1), "no update is wasted"
    )
    yield Change("schedule.decay.kind", recipe.schedule.decay.kind, "linear", down)
    yield Change("schedule.decay.final_factor", recipe.get("schedule.decay.final_factor"), 0.0, down)
    yield Change("schedule.combine", recipe.schedule.combine, "sequential", "up, then down")
    if "forget_bias" in recipe.model:
        yield Change("model.forget_bias", recipe.model["forget_bias"], 1.0, "a recurrent cell that starts by remembering learns sooner")
    yield from kept_group(recipe, k)
