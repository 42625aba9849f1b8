"""The schedule that a recipe describes."""

from functools import partial
from typing import assert_never

from bigbatch.recipe import Recipe
from bigbatch.recipe import sections as r
from bigbatch.schedules.compose import Schedule, product
from bigbatch.schedules.constant import constant
from bigbatch.schedules.constant_warmup import constant_warmup
from bigbatch.schedules.cosine import cosine
from bigbatch.schedules.gradual_warmup import gradual_warmup
from bigbatch.schedules.linear import linear
from bigbatch.schedules.polynomial import polynomial
from bigbatch.schedules.step_decay import step_decay


def schedule_of(recipe: Recipe) -> Schedule:
    """Warm-up times decay, with epochs turned into samples; for AutoWU an `AutoWU`, anew at each call, whose `observe` is yours to call.

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
            return AutoWU(total_samples=recipe.total_samples, seed=recipe.seed, **settings)
        case other:
            assert_never(other)


def decay_of(recipe: Recipe) -> Schedule:
    """The decay alone."""
    epoch, total = recipe.num_train_samples, recipe.total_samples
    match recipe.schedule.decay:
        case r.ConstantDecay():
            return constant
        case r.StepDecay() as d:
            return partial(step_decay, milestones=[m * epoch for m in d.milestones], factor=d.factor)
        case r.PolynomialDecay() as d:
            return partial(polynomial, total_samples=total, power=d.power, final_factor=d.final_factor)
        case r.CosineDecay() as d:
            return partial(cosine, total_samples=total, final_factor=d.final_factor)
        case r.LinearDecay() as d:
            return partial(linear, total_samples=total, final_factor=d.final_factor)
        case other:
            assert_never(other)
