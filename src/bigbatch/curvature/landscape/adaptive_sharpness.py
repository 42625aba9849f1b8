r"""Adaptive sharpness: m-sharpness in a ball that is measured in units of each weight, which no rescaling of layers changes.

Paper:   Kwon, Kim, Park, Choi 2021, ASAM: Adaptive Sharpness-Aware Minimization, arXiv:2102.11600, Sections 3 and 4.
Formula: mean over groups M of m samples of  max_{|T^-1 e|_2 <= rho} L_M(w + e) - L_M(w),    T = diag(|w_i| + eta)
         by one step of ascent, as ASAM takes it:  e = rho T^2 g / |T g|,    g = grad L_M(w)
Units:   of the loss; rho is a share of the weights.
Differs: T is of single weights, for all parameters alike (the paper also has one value a filter); the norm is the Euclidean one (the
         paper also has the largest entry); steps and groups as in m-sharpness.

eta keeps weights at zero in the game; with eta = 0 the value is exactly the same for w and for every rescaling of its layers that leaves
the function alone, which neither Keskar's box nor SAM's ball is.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.curvature.landscape.mean_loss import Landscape
from bigbatch.curvature.landscape.sam_sharpness import SAMSharpness, sam_sharpness
from bigbatch.curvature.products.evaluated import Loss

PAPER = Paper(
    method="Adaptive sharpness",
    title="ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    authors="Kwon et al.",
    year=2021,
    arxiv="2102.11600",
    where="Sections 3 and 4",
)


def scale_of(weights: Tensor, eta: float) -> Tensor:
    """T's diagonal, shape (n,): a weight's own size and a little more.

    >>> scale_of(torch.tensor([0.0, -2.0]), 0.5)
    tensor([0.5000, 2.5000])
    """
    return weights.abs() + eta


def adaptive_sharpness(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    *,
    rho: float = 0.5,
    eta: float = 0.01,
    m: int | None = None,
    steps: int = 1,
    parameters: Iterable[Tensor] | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> SAMSharpness:
    """Adaptive m-sharpness of a model at its weights; the other arguments are `sam_sharpness`'s.

    Args:
        model: Any module.
        loss: As there.
        batches: As there.
        rho: Radius of the ball, as a share of the weights; the paper's for CIFAR-10 is 0.5.
        eta: Added to the size of each weight; the paper's is 0.01. With 0, weights that are zero stay.
        m: As there.
        steps: As there.
        parameters: As there.
        micro_batch: As there.
        progress: As there.

    Raises:
        UserError: If a number is out of range, or the model, loss or batches can't be used; see `Hessian`.
    """
    if not 0 <= eta < float("inf"):
        raise UserError(f"eta = {eta}: must be zero or a finite number above it; the paper's is 0.01")
    chosen = None if parameters is None else list(parameters)
    at = Landscape(model, loss, batches, parameters=chosen, micro_batch=micro_batch)
    scale = scale_of(at.start, eta).clamp(min=torch.finfo(at.start.dtype).tiny)
    return sam_sharpness(
        model, loss, batches, rho=rho, m=m, steps=steps, scale=scale, parameters=chosen, micro_batch=micro_batch, progress=progress
    )
