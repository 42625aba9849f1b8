r"""Sharpness as sharpness-aware minimisation sees it: the rise of the loss within a ball around the weights, group by group of m samples.

Paper:   Foret, Kleiner, Mobahi, Neyshabur 2020, Sharpness-Aware Minimization, arXiv:2010.01412, Sections 2 and 4.1 (m-sharpness).
Formula: mean over groups M of m samples of  max_{|e|_2 <= rho} L_M(w + e) - L_M(w)
         by one step of ascent, as SAM takes it:  e = rho g / |g|,    g = grad L_M(w)
Units:   of the loss; rho of the weights.
Differs: more steps can be taken: e <- e + rho g / |g| with g at w + e, brought back to the ball. The largest loss that was seen counts,
         e = 0 among them. A group that is smaller, for want of samples, weighs by its samples.

The smaller the groups, the sharper: each has an e of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.paper import Paper
from bigbatch.curvature.landscape.mean_loss import Landscape
from bigbatch.curvature.products.evaluated import Loss
from bigbatch.curvature.products.fixed_batches import FixedBatches
from bigbatch.curvature.products.preserve_state import preserve_state

PAPER = Paper(
    method="m-sharpness",
    title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
    authors="Foret et al.",
    year=2020,
    arxiv="2010.01412",
    where="Sections 2 and 4.1",
)


def ascent_step(d: Tensor, gradient: Tensor, rho: float) -> Tensor:
    """A step of length rho along the gradient, brought back to the ball of radius rho; stays where the gradient is zero.

    Args:
        d: Where the ascent is, shape (n,), within the ball.
        gradient: Towards d, shape (n,).
        rho: Above zero.

    >>> ascent_step(torch.zeros(2), torch.tensor([3.0, 4.0]), 5.0)
    tensor([3., 4.])
    """
    size: Tensor = torch.linalg.vector_norm(gradient)
    if not size:
        return d
    farther: Tensor = d + rho * gradient / size
    back: Tensor = (rho / torch.linalg.vector_norm(farther)).clamp(max=1)
    return farther * back


def highest_in_ball(at: Landscape, *, rho: float, steps: int = 1, scale: Tensor | None = None) -> tuple[float, float]:
    """The loss at the middle of a ball, and the largest that an ascent in it saw.

    Args:
        at: The loss; the middle is its start.
        rho: Radius.
        steps: Of ascent; each costs a pass with gradients, and the end one without.
        scale: T, shape (n,), above zero: the ball is |e / T| <= rho; ones, if left out.
    """
    T = torch.ones_like(at.start) if scale is None else scale
    d, seen = torch.zeros_like(at.start), []
    for _ in range(steps):
        value, gradient = at.loss_and_gradient(at.start + T * d)
        seen.append(value)
        d = ascent_step(d, T * gradient, rho)
    seen.append(at.loss(at.start + T * d))
    return seen[0], max(seen)


class SAMSharpness(NamedTuple):
    """Of a model at its weights; means over samples."""

    value: float  # highest - loss
    loss: float  # L(w)
    highest: float  # mean over groups of the largest loss in the ball
    num_groups: int
    evaluations: int  # passes over a group


def sam_sharpness(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    *,
    rho: float = 0.05,
    m: int | None = None,
    steps: int = 1,
    scale: Tensor | None = None,
    parameters: Iterable[Tensor] | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> SAMSharpness:
    """m-sharpness of a model at its weights, in evaluation mode.

    The model is copied: its weights, buffers, gradients and mode, and all random states, are left as found.

    Args:
        model: Any module.
        loss: Takes outputs and targets of n samples and gives their n losses, or the mean of them.
        batches: Pairs of inputs and targets.
        rho: Radius of the ball; the paper's default is 0.05.
        m: Samples of a group, cut from each batch in turn; the last of a batch may be smaller. All samples are one group, if None.
        steps: Of ascent; SAM takes one.
        scale: T, shape (n,): the ball is |e / T|_2 <= rho; see `adaptive_sharpness`.
        parameters: Which of the model's parameters move; those that require gradients, if left out.
        micro_batch: Most samples in a forward pass.
        progress: Is told the groups done, and None for how many there will be, after each.

    Raises:
        UserError: If a number is out of range, or the model, loss or batches can't be used; see `Hessian`.
    """
    check_positive("rho", rho, "the paper's default is 0.05")
    for name, value in (("m", m), ("steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: must be at least 1; leave it out for the default")
    whole = Landscape(model, loss, batches, parameters=parameters, micro_batch=micro_batch)
    if scale is not None and (scale.shape != whole.start.shape or not bool((scale > 0).all())):
        raise UserError(f"scale of shape {tuple(scale.shape)}: must be ({whole.size},) and above zero everywhere; give one for each weight")
    sums, samples, num_groups, evaluations = [0.0, 0.0], 0, 0, 0
    with preserve_state(model):
        groups = ((whole, 1),) if m is None else _groups(whole, batches, m)
        for at, size in groups:
            found = highest_in_ball(at, rho=rho, steps=steps, scale=scale)
            sums = [total + size * value for total, value in zip(sums, found, strict=True)]
            samples, num_groups, evaluations = samples + size, num_groups + 1, evaluations + at.evaluations
            if progress is not None:
                progress(num_groups, None)
    if not samples:
        raise UserError("batches: none; give at least one batch of at least one sample")
    here, highest = (total / samples for total in sums)
    return SAMSharpness(highest - here, here, highest, num_groups, evaluations)


def _groups(whole: Landscape, batches: Iterable[tuple[Any, Any]], m: int) -> Iterable[tuple[Landscape, int]]:
    largest = 0
    for piece in FixedBatches(batches, micro_batch=m, device=whole.start.device):
        largest = max(largest, piece.samples)
        yield whole.over([(piece.inputs, piece.targets)]), piece.samples
    if 0 < largest < m:
        raise UserError(f"m = {m}: no batch has so many samples, the largest has {largest}; give larger ones, or leave m out for one group")
