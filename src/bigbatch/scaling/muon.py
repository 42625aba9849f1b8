"""Muon in place of the reference's optimizer, at rates that follow from the number of updates alone. This project's own rule.

    T updates:   rate of the matrices 0.4 / sqrt(T),   rate of the rest (AdamW) 0.15 / sqrt(T),   momentum 0.85
                 warm-up over two updates, then straight down to zero
                 weight decay of the matrices: over the run they shrink by as much as in the reference,
                     lr' wd' T' = lr wd T / (1 - m)   (SGD, Adam: m = 0 for Adam; AdamW's own product)
Why:             an orthogonalised step has a fixed length whatever the gradient, so the reference's rate and batch do not matter;
                 T steps of random sign travel eta sqrt(T), and that length is kept. studies/optimizers shows how far it holds, and
                 what was tried beside it.
"""

import math
from typing import NamedTuple

from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import SGD
from bigbatch.scaling.change import Change
from bigbatch.scaling.switch import switch

WARMUP_UPDATES = 2
MOMENTUM = 0.85


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


def kept_decay(recipe: Recipe, *, lr: float, num_updates: int) -> float:
    """The decoupled weight decay at rate `lr` that shrinks the weights over the run as the reference's decay does.

    >>> kept_decay(Recipe.named("fashion_mnist/mlp").replace({"budget.epochs": None, "budget.updates": 1000}), lr=0.1, num_updates=100)
    0.01
    """
    o = recipe.optimizer
    momentum = o.momentum if isinstance(o, SGD) else 0.0
    return round(o.lr * o.weight_decay * recipe.num_updates / (1 - momentum) / (lr * num_updates), 6)


def muon(recipe: Recipe, k: float) -> list[Change]:
    """What changes besides the batch."""
    batch = round(recipe.batch.global_batch * k)
    updates = math.ceil(recipe.total_samples / batch)
    lr, adam_lr = muon_rates(updates)
    why = "every direction of a matrix moves alike, whatever its gradient's size (`bigbatch papers muon`)"
    few = f"{WARMUP_UPDATES} updates; an orthogonalised step can't explode"
    decay = kept_decay(recipe, lr=lr, num_updates=updates)
    changes = switch(recipe, "muon", {"lr": lr, "adam_lr": adam_lr, "momentum": MOMENTUM, "weight_decay": decay}, why)
    reasons = {
        "optimizer.lr": f"0.4 / sqrt({updates}): of the orthogonalised matrices",
        "optimizer.adam_lr": f"0.15 / sqrt({updates}): of all else, by AdamW",
        "optimizer.weight_decay": "over the run the matrices shrink by as much as in the reference",
        "optimizer.momentum": "shorter, for few updates",
    }
    changes = [c._replace(why=reasons.get(c.field, c.why)) for c in changes]
    changes += [
        Change("schedule.warmup.kind", recipe.schedule.warmup.kind, "gradual", "a straight line, per update"),
        Change("schedule.warmup.epochs", recipe.get("schedule.warmup.epochs"), WARMUP_UPDATES * batch / recipe.num_train_samples, few),
        Change("schedule.warmup.start_factor", recipe.get("schedule.warmup.start_factor"), 1 / (WARMUP_UPDATES + 1), "no update is wasted"),
        Change("schedule.decay.kind", recipe.schedule.decay.kind, "linear", "to zero: the last steps average the noise away"),
    ]
    if "forget_bias" in recipe.model:
        changes.append(
            Change("model.forget_bias", recipe.model["forget_bias"], 1.0, "a recurrent cell that starts by remembering learns sooner")
        )
    if recipe.batch.ghost_batch == "global":
        why = "keep the samples per normalisation group of the reference"
        changes.append(Change("batch.ghost_batch", "global", recipe.batch.global_batch, why))
    return changes
