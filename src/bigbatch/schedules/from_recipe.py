"""The schedule that a recipe describes."""

import math

from bigbatch.core.methods import DECAYS, WARMUPS
from bigbatch.recipe import Recipe
from bigbatch.schedules.compose import Schedule, product
from bigbatch.schedules.span import Span


def schedule_of(recipe: Recipe) -> Schedule:
    """Warm-up and decay as `schedule.combine` says, with epochs turned into samples.

    For AutoWU: an `AutoWU`, anew at each call, whose `observe` is yours to call.

    >>> from bigbatch import Clock, Recipe
    >>> schedule_of(Recipe.named("digits/mlp"))(Clock(samples=0))
    0.0
    """
    if recipe.schedule.warmup.learns:
        return warmup_of(recipe)
    return product(warmup_of(recipe), decay_of(recipe))


def warmup_of(recipe: Recipe) -> Schedule:
    """The warm-up alone."""
    warmup = recipe.schedule.warmup
    schedule: Schedule = WARMUPS[warmup.kind].build(warmup, recipe)
    return schedule


def decay_of(recipe: Recipe) -> Schedule:
    """The decay alone: 1 during the warm-up, unless the recipe's `schedule.combine` is "product"."""
    total, decay = recipe.total_samples, recipe.schedule.decay
    begin = min(_warmup_samples(recipe), total - 1) if recipe.schedule.combine == "sequential" else 0
    schedule: Schedule = DECAYS[decay.kind].build(decay, Span(begin, total, recipe.num_train_samples))
    return schedule


def _warmup_samples(recipe: Recipe) -> int:
    """Samples from the start to the first one at the peak rate; 0 for AutoWU, which brings a decay of its own."""
    return math.ceil(recipe.warmup_samples)
