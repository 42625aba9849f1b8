r"""How far the weights walk: their distance from where they began grows with the logarithm of the updates.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 3 ("ultra-slow diffusion").
Formula: |w_t - w_0| ~ log t,   t in updates, at the rate of the initial phase,
         as of a random walk in a random potential whose standard deviation grows with the distance. At a rate of sqrt(k) times the small
         batch's, with ghost batches, a batch k times as large walks alike.
Units:   the norm is of all parameters taken as one vector; t counts from 1.
Differs: nowhere. The fit is by least squares, and the paper shows its curves without one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.norms import sq_norm
from bigbatch.core.tensors.sharding import layout, local, sum_over_shards

PAPER = Paper(
    method="Weight distance",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 3",
    study="studies/train_longer",
)

PER_OCTAVE = 8


def distance(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """Euclidean distance of two lists of tensors, each taken as one vector. Syncs with the device.

    Args:
        tensors: Any shapes and floating dtypes; sharded ones (DTensor) count as whole, and every rank calls.
        others: Of the same shapes, and sharded alike.

    >>> import torch
    >>> distance([torch.tensor([4.0]), torch.tensor([[5.0]])], [torch.tensor([1.0]), torch.tensor([[1.0]])])
    5.0
    """
    sums: dict[Any, Tensor] = {}  # one collective for all tensors of a layout
    for a, b in zip(tensors, others, strict=True):
        where, part = layout(a), sq_norm([local(a).detach() - local(b)])
        sums[where] = sums[where] + part if where in sums else part
    return math.sqrt(sum(sum_over_shards(part, where).item() for where, part in sums.items()))


def is_due(updates: int, per_octave: int = PER_OCTAVE) -> bool:
    """Whether to measure after so many updates: evenly on a logarithmic axis, a function of their number alone.

    >>> [t for t in range(1, 70) if is_due(t, per_octave=2)]
    [1, 2, 3, 4, 6, 8, 12, 16, 23, 32, 46, 64]
    """
    return updates == 1 or (updates > 1 and math.floor(per_octave * math.log2(updates)) > math.floor(per_octave * math.log2(updates - 1)))


class WeightDistance:
    """Distance of a model's parameters from what they were when this was made; holds a copy of them.

    Args:
        model: Before its first update.

    >>> import torch
    >>> model = nn.Linear(1, 1)
    >>> walked = WeightDistance(model)
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(3.0), model.bias.add_(4.0)
    >>> round(walked.now(), 4)
    5.0
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._start = [p.detach().clone() for p in self._parameters]

    def now(self) -> float:
        """The distance. Syncs with the device; of several workers that share a model by shards, all call."""
        return distance(self._parameters, self._start)


class Line(NamedTuple):
    """y = intercept + slope x, by least squares."""

    slope: float
    intercept: float
    r_squared: float  # share of the variance that the line explains


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares.

    Raises:
        UserError: If there are fewer than three points, or none differ in x.

    >>> fit_line([1, 2, 3], [3.0, 5.0, 7.0])
    Line(slope=2.0, intercept=1.0, r_squared=1.0)
    """
    u, v = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(u) != len(v) or len(u) < 3 or u.min() == u.max():
        raise UserError(f"{len(u)} and {len(v)} values: must be three pairs or more, of which some differ in the first; measure more")
    slope = float(((u - u.mean()) * (v - v.mean())).sum() / np.square(u - u.mean()).sum())
    intercept = float(v.mean() - slope * u.mean())
    spread, rest = np.square(v - v.mean()).sum(), np.square(v - intercept - slope * u).sum()
    return Line(slope, intercept, float(1 - rest / spread) if spread else 1.0)


def fit_log(updates: Sequence[float], distances: Sequence[float]) -> Line:
    """Fit |w_t - w_0| = intercept + slope log t, natural logarithm.

    Args:
        updates: t, from 1 on; those of the initial phase, before the rate falls.
        distances: |w_t - w_0| at each.

    Returns:
        Distance for each e-fold of the updates, distance at the first one, and the share of the variance that the law explains:
        beside that of `fit_line` over the roots of t, ordinary diffusion's law, it says which of the two holds.

    Raises:
        UserError: If a t is below 1, there are fewer than three points, or none differ in t.

    >>> fit_log([1, 10, 100], [2.0, 3.0, 4.0])  # doctest: +ELLIPSIS
    Line(slope=0.434..., intercept=2.0, r_squared=1.0)
    """
    if min(updates, default=1) < 1:
        raise UserError(f"updates = {min(updates)}: must be 1 or more, where the logarithm begins; leave out the start")
    return fit_line(np.log(updates).tolist(), distances)
