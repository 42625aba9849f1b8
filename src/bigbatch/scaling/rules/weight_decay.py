r"""What the weight decay of one optimizer is in another: the same number means different things.

                shrinkage of a weight in an update at rate e, decay l          kind
    sgd         e l / (1 - m)     added to the gradient, so momentum sums it   coupled
    sgdp        e l / (1 - m)     on the weights, divided so by its authors    decoupled
    adamw       e l                                                            decoupled
    adamp       e l                                                            decoupled
    muon        e l               of the matrices                              decoupled
    adam        depends on the gradient: l w is divided by its root mean square
    lars, lamb  depend on the gradient: the step has a fixed length, of which decay is a part

Conversions, where the optimizer changes (m momentum, T updates, sums over the *actual* schedules of both runs):
    sgd sgdp adamw adamp muon  ->  sgdp adamw adamp muon   the total shrinkage is kept:  sum_t e'_t l' / (1 - m') = sum_t e_t l / (1 - m)
    sgd                        ->  lars                    l' = l: both add l w to the gradient, which is the loss plus l |w|^2 / 2
    adamw adamp                ->  lamb                    l' = l: the direction of the step is AdamW's, update + l w
    no decay (l = 0)           ->  anything                no decay
    anything else                                          has no equivalent: the published value of the new optimizer, and a warning
AdamP and SGDP decay weights whose gradient is orthogonal to them (before a normalisation) by wd_ratio of that; the sums leave it out.
A rate that AutoWU finds has no sum beforehand: no equivalent.
"""

from typing import NamedTuple

from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.schedules.from_recipe import schedule_of

SAME = {("sgd", "lars"), ("adamw", "lamb"), ("adamp", "lamb")}
MOST_SUMMANDS = 4_096


KEPT_SHRINKAGE = "over the run the weights shrink by as much as in the reference"


class Decay(NamedTuple):
    """The weight decay for another optimizer."""

    value: float
    why: str
    exact: bool  # False: the reference's decay has no equivalent


def sum_of_factors(recipe: Recipe) -> float:
    """Sum over all updates of the schedule's factor of the peak rate; long runs are summed over evenly spaced updates.

    >>> flat = Recipe.named("digits/mlp").replace({"schedule.decay.kind": "constant", "schedule.warmup.kind": "none"})
    >>> sum_of_factors(flat) == flat.num_updates
    True
    """
    schedule, batch, updates = schedule_of(recipe), recipe.batch.global_batch, recipe.num_updates
    every = -(-updates // MOST_SUMMANDS)
    factors = [schedule(Clock(update * batch, update)) for update in range(every // 2, updates, every)]
    return sum(factors) * updates / len(factors)


def total_shrinkage(recipe: Recipe) -> float | None:
    """Sum over the run of the fraction by which decay shrinks a weight in an update; None where no such sum is known beforehand.

    >>> recipe = Recipe.named("digits/mlp").replace({"optimizer.weight_decay": 0.01, "schedule.decay.kind": "constant"})
    >>> round(total_shrinkage(recipe.replace({"schedule.warmup.kind": "none"})), 6)  # 811 updates at 0.1, momentum 0.9
    8.11
    """
    o = recipe.optimizer
    if o.weight_decay == 0:
        return 0.0
    if o.decay_divisor is None or recipe.schedule.warmup.learns:
        return None
    return o.lr * o.weight_decay * sum_of_factors(recipe) / o.decay_divisor


def decay_for_shrinkage(planned: Recipe, total: float) -> float:
    """The weight decay with which the planned run shrinks weights by `total`; its own where no update has a rate, which no decay mends."""
    o = planned.optimizer
    if total == 0 or (factors := sum_of_factors(planned)) == 0:
        return 0.0 if total == 0 else o.weight_decay
    return float(f"{total * (o.decay_divisor or 1.0) / (o.lr * factors):.6g}")


def converted_decay(reference: Recipe, planned: Recipe) -> Decay:
    """The weight decay of the planned run, whose other fields are set, from the reference's.

    >>> sgd = Recipe.named("fashion_mnist/mlp")
    >>> converted_decay(sgd, sgd.replace({"optimizer.name": "lars"})).value == sgd.optimizer.weight_decay
    True
    """
    old, new, value = reference.optimizer.name, planned.optimizer.name, reference.optimizer.weight_decay
    if value == 0:
        return Decay(0.0, "the reference has none", True)
    if (old, new) in SAME:
        what = "both add it to the gradient" if new == "lars" else f"the direction of {new}'s step is {old}'s"
        return Decay(value, f"kept: {what}", True)
    total = total_shrinkage(reference)
    if total is not None and planned.optimizer.decay_divisor is not None and not planned.schedule.warmup.learns:
        return Decay(decay_for_shrinkage(planned, total), KEPT_SHRINKAGE, True)
    return Decay(planned.optimizer.published_decay, f"published for {new}: the reference's {value:g} of {old} has no equivalent", False)
