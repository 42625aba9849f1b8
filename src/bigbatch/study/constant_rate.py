"""A recipe at a constant rate, as studies of updates to a target need it: no budget bends the curve, and a shorter run is the same run."""

import math
from typing import Any

from bigbatch.core.checks import UserError
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Runner
from bigbatch.scaling import plan
from bigbatch.scaling.rules.sqrt import sqrt_lr

WARMUP_UPDATES = 10
EPOCHS = 4.0
"""Times the recipe's: the budget of a run."""
CONSTANT = ("schedule.decay.kind", "schedule.warmup.kind", "schedule.warmup.epochs")
"""What a script must take from the recipe to train at a constant rate."""
OWN_SCHEDULE = (
    "the script keeps its own schedule over {epochs:g} epochs: where its rate falls, updates to the target depend on that length, and the "
    "critical batch may be off"
)


def keeps_no_schedule(runner: Runner) -> bool:
    """Whether it can be told to train at a constant rate."""
    return all(runner.can_change(field) for field in CONSTANT)


def at_constant_rate(reference: Recipe, global_batch: int, epochs: float, runner: Runner, *, constant: bool) -> Recipe:
    """The reference at another batch, with the root of the multiple in its rates, a short warm-up and a budget in whole updates.

    A script that can't be told its schedule, or its updates, keeps the one and has its budget in epochs.

    Raises:
        UserError: If the runner can't be told the rate or the batch.
    """
    recipe = plan(reference, global_batch=global_batch, rule="none").recipe
    k = global_batch / reference.batch.global_batch
    changes: dict[str, Any] = {name: sqrt_lr(recipe.get(name), k) for name in rates_of(recipe)}
    if constant:
        changes |= {
            "schedule.decay.kind": "constant",
            "schedule.warmup.kind": "gradual",
            "schedule.warmup.epochs": WARMUP_UPDATES * global_batch / recipe.num_train_samples,
            "schedule.warmup.start_factor": 1 / WARMUP_UPDATES,
        }
    in_updates = runner.can_change("budget.updates")
    changes |= {f"budget.{unit}": None for unit in ("samples", "tokens", "tokens_per_sample")}
    changes["budget.epochs"] = None if in_updates else epochs
    changes["budget.updates"] = math.ceil(epochs * recipe.num_train_samples / global_batch) if in_updates else None
    for field in (*rates_of(recipe), "batch.global_batch"):
        if not runner.can_change(field):
            raise UserError(f"{runner.name}: has no place for {field}, which a study of batches changes; add it to the command")
    made = recipe.replace(changes)
    runner.check(made)
    return made


def rates_of(recipe: Recipe) -> list[str]:
    """The fields of a recipe that are learning rates; a search changes all by one factor."""
    return [name for name in ("optimizer.lr", "optimizer.adam_lr") if recipe.get(name) is not None]
