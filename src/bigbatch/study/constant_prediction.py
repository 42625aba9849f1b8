"""What a constant prediction scores, asked of any runner, and a target that it would reach."""

from bigbatch.core.checks import UserError
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import NO_CONSTANT, Runner, Split
from bigbatch.train.measure.constant_prediction import ConstantPrediction


def constant_of(runner: Runner, recipe: Recipe, *, split: Split) -> ConstantPrediction | str:
    """The best constant output on a part of the data; a text says why it can't be measured."""
    measure = getattr(runner, "constant_prediction", None)
    if measure is None:  # somebody's own runner
        return NO_CONSTANT.format(what=runner.name)
    try:
        found: ConstantPrediction = measure(recipe, split=split)
        return found
    except UserError as error:
        return str(error)


def check_target(runner: Runner, recipe: Recipe, target: float) -> None:
    """Refuse a target that says nothing about learning: no score, or one that a constant prediction reaches.

    Raises:
        UserError: Saying which.
    """
    metric = runner.metric
    metric.check_target(target)
    constant = constant_of(runner, recipe, split="validation")
    if isinstance(constant, ConstantPrediction) and metric.reaches(constant.score, target):
        raise UserError(
            f"target = {target:g}: the same prediction for every sample has a validation {metric.name} of {metric.text(constant.score)} "
            f"({constant.score:.4g}); updates to it would say nothing, choose a {metric.better} one"
        )
