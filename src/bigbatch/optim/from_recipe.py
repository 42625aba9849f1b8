"""The optimizer that a recipe describes, for a training loop of your own."""

from torch import nn
from torch.optim import Optimizer

from bigbatch.core.checks import RecipeError, UserError
from bigbatch.core.methods import OPTIMIZERS
from bigbatch.recipe import Recipe
from bigbatch.recipe.recipe import HasRecipe, recipe_in


def build_optimizer(model: nn.Module, recipe: Recipe | HasRecipe) -> Optimizer:
    """The recipe's optimizer at its peak rate, with the parameter groups that `bigbatch.fit` would make.

    Only `[optimizer]` is read. The rest of an update belongs to the loop: optimizers never clip, so where the recipe has a
    `clip_norm`, call `torch.nn.utils.clip_grad_norm_` before each step; precision, normalisation groups, augmentation and the order of the
    data are the loop's too. With DistributedDataParallel, build the optimizer from the wrapped or the bare model.

    Args:
        model: On its device, with its batch norms converted, so that its parameters stay what they are.
        recipe: From `Recipe.named`, `Recipe.load` or `plan`.

    Returns:
        A `torch.optim.Optimizer`; its groups' `lr` is the peak rate, from which `build_scheduler` goes on.

    Raises:
        UserError: If an argument is of another kind, a pattern of `optimizer.groups` matches no parameter, or `[comm]` asks for more than
            the mean gradient of all workers: another `kind` than "all_reduce", or a compression, is not part of an optimizer.

    >>> import torch
    >>> import bigbatch
    >>> recipe = bigbatch.Recipe.named("digits/mlp").replace({"optimizer.lr": 0.4})
    >>> optimizer = build_optimizer(torch.nn.Linear(64, 10), recipe)
    >>> type(optimizer).__name__, optimizer.param_groups[0]["lr"]
    ('SGD', 0.4)
    """
    recipe = recipe_in(recipe)
    if not isinstance(model, nn.Module):
        raise UserError(f"model = {model!r:.80}: must be the module itself, whose parameters are put into groups by what they are")
    comm = recipe.comm
    if comm.kind != "all_reduce":
        raise RecipeError(
            f'comm.kind = "{comm.kind}": how workers go together is not part of an optimizer; build it from bigbatch.comm and give '
            'recipe.replace({"comm.kind": "all_reduce"}) here, or train by bigbatch.fit'
        )
    if (compression := getattr(comm, "compression", None)) is not None:
        raise RecipeError(
            f'comm.compression.kind = "{compression.kind}": how gradients are exchanged is not part of an optimizer; build it from '
            'bigbatch.comm and give recipe.replace({"comm.compression": None}) here, or train by bigbatch.fit'
        )
    optimizer: Optimizer = OPTIMIZERS[recipe.optimizer.name].build(recipe.optimizer, model, None)
    return optimizer
