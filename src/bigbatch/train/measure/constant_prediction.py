r"""The score of a constant prediction: the best output that is the same for every sample, which a model that learnt something must beat.

Method:  c minimises mean_i loss(c, target_i) over a data set, found by L-BFGS from c = 0; its score is mean_i score(c, target_i).
         Of cross-entropy c is the logarithm of the classes' shares, its score that of the largest class; of squared error c is the mean.
Shapes:  c is as the model's outputs for one sample; 1 along a dimension that differs between batches (padded sequences).
Limits:  it is the best by the task's losses, not by its scores. A task whose outputs hold anything else than one tensor a sample, or whose
         losses do not come from targets, has none.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from bigbatch.core.checks import UserError
from bigbatch.core.hardware.devices import forked_random
from bigbatch.core.storage.reading import reason
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import has_weights, outputs_of, sum_of_weights
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import autocast
from bigbatch.train.measure.evaluate import EVALUATION_BATCH
from bigbatch.train.setup.build import build_model
from bigbatch.train.update.gradient_accumulation import check_per_sample

ITERATIONS = 20
FLAT = 0.5
"""Of the gradient at c = 0: where more of it is left at the end, the losses have no lowest value."""

ROUNDING = 1e-5
"""Of a gradient, where c = 0 is the best already."""


class ConstantPrediction(NamedTuple):
    """What a constant prediction has on a data set.

    Attributes:
        score: Mean of the task's scores.
        loss: Mean of the task's losses.
        spread: Standard deviation of the scores of single samples; of weighted ones, over the mean weight.
        num_samples: In the data set.
    """

    score: float
    loss: float
    spread: float
    num_samples: int


class _Batch(NamedTuple):
    targets: Any
    num_samples: int
    shapes: list[torch.Size | None]  # of the outputs' leaves; None: no tensor


def constant_prediction(task: Task, recipe: Recipe, dataset: Dataset[Any], *, device: torch.device) -> ConstantPrediction:
    """Loss and score of the best constant output on a data set.

    Costs one pass of an untrained model over the data, for the shapes of its outputs, and some tens of passes through the losses alone.

    Args:
        task: Losses, scores and the model's outputs.
        recipe: For the model's options and its precision.
        dataset: Map-style, such as the test set.
        device: Where it is computed.

    Raises:
        UserError: If the task has no constant prediction, saying why.
    """
    try:
        with forked_random(device):
            batches, structure = _shapes(task, recipe, dataset, device)
        constants = [None if shape is None else torch.zeros(shape, device=device) for shape in _common([b.shapes for b in batches])]
        return _best(task, batches, structure, constants)
    except UserError:
        raise
    except Exception as error:  # whatever a task's own functions do with outputs that no model made
        raise UserError(f"its losses or scores do not take a constant output ({type(error).__name__}: {reason(error):.100})") from None


def _shapes(task: Task, recipe: Recipe, dataset: Dataset[Any], device: torch.device) -> tuple[list[_Batch], pytree.TreeSpec]:
    """Targets, and the structure and shapes of a model's outputs for them."""
    model = build_model(task, recipe, device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    chosen = torch.split(torch.arange(len(dataset)), EVALUATION_BATCH)  # type: ignore[arg-type]
    batches, structure = [], None
    for index, (inputs, targets) in zip(chosen, load_micro_batches(dataset, chosen, device=device, dtype=dtype), strict=True):
        with torch.no_grad(), autocast(recipe.precision, device):
            leaves, structure = pytree.tree_flatten(outputs_of(task, model, inputs))
        for leaf in leaves:
            if leaf is not None and not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.shape[:1] == (len(index),)):
                what = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"type {type(leaf).__name__}"
                raise UserError(f"the model's outputs hold a part of {what}, not one tensor of numbers a sample")
        batches.append(_Batch(targets, len(index), [None if leaf is None else leaf.shape for leaf in leaves]))
    if structure is None or not any(shape is not None for shape in batches[0].shapes):
        raise UserError("there are no outputs")
    return batches, structure


def _common(shapes: Sequence[Sequence[torch.Size | None]]) -> list[tuple[int, ...] | None]:
    """Shape of each constant: the outputs' own without their samples, 1 where batches differ."""
    found: list[tuple[int, ...] | None] = []
    for leaf in zip(*shapes, strict=True):
        known = [shape for shape in leaf if shape is not None]
        dims = zip(*(shape[1:] for shape in known), strict=True)
        found.append(tuple(dim[0] if len(set(dim)) == 1 else 1 for dim in dims) if known else None)
    return found


def _best(task: Task, batches: Sequence[_Batch], structure: pytree.TreeSpec, constants: Sequence[Tensor | None]) -> ConstantPrediction:
    free = [c.requires_grad_() for c in constants if c is not None]
    num_samples, weighted = sum(batch.num_samples for batch in batches), has_weights(task)
    divisor = float(sum(sum_of_weights(task, batch.targets, batch.num_samples) for batch in batches)) if weighted else float(num_samples)

    def outputs(batch: _Batch) -> Any:
        leaves = [
            c if c is None or shape is None else c.expand(shape[0], *shape[1:]) for c, shape in zip(constants, batch.shapes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, structure)

    def per_sample(values: Tensor, batch: _Batch, what: str) -> Tensor:
        check_per_sample(values, batch.num_samples, f"task {task.name}: {what}")
        return values.double()

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            part = per_sample(task.losses(outputs(batch), batch.targets), batch, "losses").sum() / divisor
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach().cpu()
        return total

    optimizer = torch.optim.LBFGS(free, max_iter=ITERATIONS, tolerance_change=1e-6, line_search_fn="strong_wolfe")
    loss()
    at_zero = _length(free)
    optimizer.step(loss)  # type: ignore[no-untyped-call]
    least = float(loss())
    if not math.isfinite(least) or _length(free) > FLAT * at_zero + ROUNDING:
        raise UserError("no constant output is the best one by its losses")
    with torch.no_grad():
        scores = torch.cat([per_sample(task.scores(outputs(batch), batch.targets), batch, "scores") for batch in batches])
    spread = float(scores.std(correction=0)) * num_samples / divisor
    return ConstantPrediction(float(scores.sum()) / divisor, least, spread, num_samples)


def _length(free: Sequence[Tensor]) -> float:
    """Of the gradient."""
    return math.hypot(*(float(c.grad.norm()) for c in free if c.grad is not None))
