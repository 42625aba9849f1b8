r"""Sharpness: by how much the loss can rise within a small box around the weights, in percent.

Paper:   Keskar et al. 2016, On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima, arXiv:1609.04836, Metric 2.1.
Formula: phi = 100 (max_{y in C} f(x + A y) - f(x)) / (1 + f(x)),    C = { y : |y_i| <= epsilon (|(A^+ x)_i| + 1) }
         A the identity (the full space), or n x p of N(0, 1) (a random subspace; the paper's p is 100), A^+ its pseudo-inverse
Units:   percent; f is the mean loss over all samples, x the weights.
Differs: the maximum is looked for by 10 iterations of L-BFGS-B, as in the paper; what the paper leaves open is set so that they get far.
         They start at a random point within a thousandth of the box, for at a minimum y = 0 is stationary. The objective is scaled so
         that the first gradient takes a coordinate across the box, in the mean: at a flat minimum an unscaled one would hardly move.
         No iteration is saved by tolerances. The largest f that was seen counts, y = 0 among them, so phi is never below 0.
         Each corner of the box can be a local maximum, and where a search ends depends on its start: several starts, the largest counts,
         and the value of each is returned, for their spread says how far the maximum may still be.

A lower bound of what the formula says, the tighter the more iterations. The box is relative to the weights: layers that are scaled against
each other, which leaves the outputs of a network of ReLUs alone, change phi (Dinh et al. 2017, arXiv:1703.04933). Compare equal networks at
about equal loss.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.core.paper import Paper
from bigbatch.curvature.landscape.mean_loss import Landscape
from bigbatch.curvature.products.evaluated import Loss

PAPER = Paper(
    method="Sharpness",
    title="On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima",
    authors="Keskar et al.",
    year=2016,
    arxiv="1609.04836",
    where="Metric 2.1",
    study="studies/sharpness",
)

Vector = NDArray[np.float64]
START = 1e-3
"""Of the box: how far from its middle the search starts at most."""


def phi(loss: float, highest: float) -> float:
    """Rise of the loss in percent of one more than it.

    >>> phi(1.0, 3.0)
    100.0
    """
    return 100 * (highest - loss) / (1 + loss)


def half_width(coordinates: Tensor, epsilon: float) -> Tensor:
    """Half the edges of the box C: epsilon (|z_i| + 1), for z = A^+ x of shape (p,).

    >>> half_width(torch.tensor([0.0, -3.0]), 0.5)
    tensor([0.5000, 2.0000])
    """
    return epsilon * (coordinates.abs() + 1)


class Highest(NamedTuple):
    """What a search found."""

    value: float
    y: Vector  # (p,)
    iterations: int


def highest_in_box(
    f: Callable[[Vector], tuple[float, Vector]], half: Vector, *, iterations: int = 10, seed: int | Sequence[int] = 0
) -> Highest:
    """Maximise a smooth function over |y_i| <= half_i, inexactly, by L-BFGS-B in float64.

    Args:
        f: Gives value and gradient (p,) at y (p,).
        half: Shape (p,), above zero.
        iterations: At most; fewer where nothing is left to gain.
        seed: Of the random start, within `START` of the box.

    Returns:
        The largest value that was seen.

    >>> highest_in_box(lambda y: (float(y @ y), 2 * y), np.array([1.0, 2.0])).value
    5.0
    """
    with needed("Keskar's sharpness", extra="study"):
        from scipy.optimize import minimize

    start = START * half * np.random.default_rng(seed).uniform(-1, 1, len(half))
    first = f(start)
    best = Highest(first[0], start, 0)
    slope = float(np.abs(first[1]).mean())
    if not slope:
        return best
    scale = 2 * float(half.mean()) / slope

    def negative(y: Vector) -> tuple[float, Vector]:
        nonlocal best
        value, gradient = first if np.array_equal(y, start) else f(y)
        if value > best.value:
            best = Highest(value, y.copy(), 0)
        return -scale * value, -scale * gradient

    options = {"maxiter": iterations, "maxfun": 20 * iterations, "ftol": 0.0, "gtol": 0.0}
    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=np.stack([-half, half], 1), options=options)
    return best._replace(iterations=int(found.nit))


class Sharpness(NamedTuple):
    """Of a model at its weights."""

    value: float  # phi, percent: the largest of all starts
    loss: float  # f(x)
    highest: float  # the largest f(x + A y) that was seen
    at_bound: float  # share of the y_i that are at the edge of the box there
    iterations: int  # of L-BFGS-B
    evaluations: int  # passes over the data, most of them with gradients
    starts: tuple[float, ...]  # phi of each start, percent

    @property
    def spread(self) -> float:
        """Between the largest and the smallest of the starts, percent; 0 for one."""
        return max(self.starts) - min(self.starts)


def keskar_sharpness(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    *,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    iterations: int = 10,
    starts: int = 3,
    seed: int = 0,
    parameters: Iterable[Tensor] | None = None,
    micro_batch: int | None = None,
    group: dist.ProcessGroup | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Sharpness:
    """Sharpness of a model at its weights, in evaluation mode. The search runs in float64, the model in its own dtype.

    The model is copied: its weights, buffers, gradients and mode, and all random states, are left as found.

    Args:
        model: Any module.
        loss: Takes outputs and targets of n samples and gives their n losses, or the mean of them.
        batches: Pairs of inputs and targets; the same at each pass. The paper's are the whole training set.
        epsilon: Half the box, relative to the weights; the paper's are 1e-3 and 5e-4.
        subspace: Dimensions of the random subspace, the paper's 100; the full space, if None. Holds a matrix of n times so many.
        iterations: Of L-BFGS-B, from each start.
        starts: Searches, each from another random point; the cost is theirs. The paper makes one.
        seed: Of the subspace and of the starts.
        parameters: Which of the model's parameters span the space; those that require gradients, if left out.
        micro_batch: Most samples in a forward pass.
        group: Workers that share out the samples; each gets the result of all.
        progress: Is told the passes done, and None for how many there will be, after each.

    Raises:
        UserError: If a number is out of range, or the model, loss or batches can't be used; see `Hessian`.
    """
    check_positive("epsilon", epsilon, "the paper's are 1e-3 and 5e-4")
    if iterations < 1:
        raise UserError(f"iterations = {iterations}: must be at least 1; the paper's are 10")
    if starts < 1:
        raise UserError(f"starts = {starts}: must be at least 1; the default is 3")
    at = Landscape(model, loss, batches, parameters=parameters, micro_batch=micro_batch, group=group)
    if subspace is not None and not 1 <= subspace <= at.size:
        raise UserError(f"subspace = {subspace}: must be from 1 to the {at.size:,} parameters; leave it out for the full space")
    x = at.start.double().cpu()
    A = None if subspace is None else torch.randn(at.size, subspace, generator=torch.Generator().manual_seed(seed), dtype=at.start.dtype)
    z = x if A is None else torch.linalg.lstsq(A, x.to(A.dtype)[:, None], driver="gels").solution[:, 0].double()

    def told(weights: Tensor) -> Tensor:
        return weights.to(at.start.device, at.start.dtype)

    def f(y: Vector) -> tuple[float, Vector]:
        step = torch.from_numpy(y) if A is None else A @ torch.tensor(y, dtype=A.dtype)
        value, gradient = at.loss_and_gradient(told(x + step))
        if progress is not None:
            progress(at.evaluations, None)
        slope = gradient.cpu() if A is None else A.T @ gradient.cpu()
        return value, slope.double().numpy()

    here = at.loss(at.start)
    half = half_width(z, epsilon).numpy()
    searches = [highest_in_box(f, half, iterations=iterations, seed=[seed, i] if i else seed) for i in range(starts)]
    found = max(searches, key=lambda search: search.value)
    if here > found.value:
        found = Highest(here, np.zeros_like(half), found.iterations)
    at_bound = float(np.mean(np.abs(found.y) >= half * (1 - 1e-9)))
    each = tuple(phi(here, max(here, search.value)) for search in searches)
    return Sharpness(phi(here, found.value), here, found.value, at_bound, found.iterations, at.evaluations, each)
