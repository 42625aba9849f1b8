"""The torch scheduler that a recipe describes, for a training loop of your own."""

from torch.optim import Optimizer

from bigbatch.core.checks import RecipeError
from bigbatch.recipe import Recipe
from bigbatch.recipe.recipe import HasRecipe, recipe_in
from bigbatch.schedules.clock_lr import ClockLR
from bigbatch.schedules.from_recipe import schedule_of


def build_scheduler(optimizer: Optimizer, recipe: Recipe | HasRecipe) -> ClockLR:
    """A torch scheduler that follows the recipe's schedule, for a training loop of your own; call `step()` once per update.

    Only `[schedule]`, the length of the run and `batch.global_batch` are read.

    Args:
        optimizer: As `build_optimizer` returns it, or any other: the rates of its groups are taken as their peak rates.
        recipe: From `Recipe.named`, `Recipe.load` or `plan`.

    Returns:
        A `ClockLR`: the optimizer's rates are those of the first update already. It counts `global_batch` samples at each step;
        assign to its `global_batch` where an update has another number.

    Raises:
        UserError: If the rate depends on more than the samples seen: AutoWU follows the losses, a `[batch.rule]` sets the batch and the
            rate with it, and a parameter server lowers the rate for gradients that are late.

    >>> import bigbatch
    >>> import torch
    >>> recipe = bigbatch.Recipe.named("digits/mlp").replace({"schedule.warmup.epochs": 64 / 1297, "optimizer.lr": 0.4})
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    >>> scheduler = build_scheduler(sgd, recipe)  # two updates of 32 samples from 0 to the peak
    >>> rates = []
    >>> for _ in range(3):
    ...     rates.append(sgd.param_groups[0]["lr"])
    ...     sgd.step()
    ...     scheduler.step()
    >>> rates
    [0.0, 0.2, 0.4]
    """
    recipe = recipe_in(recipe)
    warmup, rule = recipe.schedule.warmup, recipe.batch.rule
    if warmup.learns:
        raise RecipeError(
            f'schedule.warmup.kind = "{warmup.kind}": follows the losses, which a scheduler does not see; use bigbatch.schedules.AutoWU as '
            "examples/autowu_in_your_own_loop.py does, or train by bigbatch.fit"
        )
    if rule is not None:
        raise RecipeError(
            f'batch.rule.kind = "{rule.kind}": sets the batch, and the rate with it, which a scheduler can\'t do; use the rule from '
            'bigbatch.batching and give recipe.replace({"batch.rule": None}) here, or train by bigbatch.fit'
        )
    if recipe.comm.kind == "parameter_server":
        raise RecipeError(
            'comm.kind = "parameter_server": its server sets the rate, lower for gradients that are late; give '
            'recipe.replace({"comm.kind": "all_reduce"}) here, or train by bigbatch.fit'
        )
    return ClockLR(optimizer, schedule_of(recipe), global_batch=recipe.batch.global_batch)
