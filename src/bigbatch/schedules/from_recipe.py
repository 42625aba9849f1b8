"""The schedule that a recipe describes."""

import math
from functools import partial
from typing import assert_never

from bigbatch.recipe import Recipe
from bigbatch.recipe import sections as r
from bigbatch.schedules.compose import Schedule, delayed, product
from bigbatch.schedules.constant import constant
from bigbatch.schedules.constant_warmup import constant_warmup
from bigbatch.schedules.cosine import cosine
from bigbatch.schedules.gradual_warmup import gradual_warmup
from bigbatch.schedules.linear import linear
from bigbatch.schedules.polynomial import polynomial
from bigbatch.schedules.step_decay import step_decay
from bigbatch.schedules.wsd import wsd


def schedule_of(recipe: Recipe) -> Schedule:
    """Warm-up and decay as `schedule.combine` says, with epochs turned into samples.

    For AutoWU: an `AutoWU`, anew at each call, whose `observe` is yours to call.

    >>> from bigbatch import Clock, Recipe
    >>> schedule_of(Recipe.named("digits/mlp"))(Clock(samples=0))
    0.0
    """
    if recipe.schedule.warmup.kind == "autowu":
        return warmup_of(recipe)
    return product(warmup_of(recipe), decay_of(recipe))


def warmup_of(recipe: Recipe) -> Schedule:
    """The warm-up alone."""
    epoch = recipe.num_train_samples
    match recipe.schedule.warmup:
        case r.NoWarmup():
            return constant
        case r.GradualWarmup() as w:
            return partial(gradual_warmup, warmup_samples=w.epochs * epoch, start_factor=w.start_factor)
        case r.ConstantWarmup() as w:
            return partial(constant_warmup, warmup_samples=w.epochs * epoch, factor=w.factor)
        case r.AutoWU() as w:
            from bigbatch.schedules.autowu import AutoWU  # imports numpy

            settings = w.model_dump(exclude={"kind", "return_to_minimum"})
            return AutoWU(total_samples=recipe.total_samples, **settings)
        case other:
            assert_never(other)


def decay_of(recipe: Recipe) -> Schedule:
    """The decay alone: 1 during the warm-up, unless the recipe's `schedule.combine` is "product"."""
    epoch, total, decay = recipe.num_train_samples, recipe.total_samples, recipe.schedule.decay
    if isinstance(decay, r.ConstantDecay):
        return constant
    if isinstance(decay, r.StepDecay):
        return partial(step_decay, milestones=[m * epoch for m in decay.milestones], factor=decay.factor)
    begin = min(_warmup_samples(recipe), total - 1) if recipe.schedule.combine == "sequential" else 0
    falling = _falling(decay, total - begin, total)
    return delayed(falling, begin) if begin else falling


def _falling(decay: r.PolynomialDecay | r.CosineDecay | r.LinearDecay | r.WSDDecay, num_samples: int, total: int) -> Schedule:
    """A decay that ends after `num_samples`, the last of the run's `total`."""
    match decay:
        case r.PolynomialDecay() as d:
            return partial(polynomial, total_samples=num_samples, power=d.power, final_factor=d.final_factor)
        case r.CosineDecay() as d:
            return partial(cosine, total_samples=num_samples, final_factor=d.final_factor)
        case r.LinearDecay() as d:
            return partial(linear, total_samples=num_samples, final_factor=d.final_factor)
        case r.WSDDecay() as d:
            length = min(d.decay_fraction * total, num_samples)
            return partial(wsd, total_samples=num_samples, decay_samples=length, shape=d.shape, final_factor=d.final_factor)
        case other:
            assert_never(other)


def _warmup_samples(recipe: Recipe) -> int:
    """Samples from the start to the first one at the peak rate; 0 for AutoWU, which brings a decay of its own."""
    warmup = recipe.schedule.warmup
    return math.ceil(warmup.epochs * recipe.num_train_samples) if isinstance(warmup, r.GradualWarmup | r.ConstantWarmup) else 0
