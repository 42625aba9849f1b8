r"""Asynchronous SGD with a parameter server: an update takes gradients of several workers, each computed at one older version.

Paper:   Lian, Huang, Li, Liu 2015, Asynchronous Parallel Stochastic Gradient for Nonconvex Optimization, arXiv:1506.08272, Algorithm 1
         (AsySG-con).
Formula: update k takes M gradients, the m-th computed at the weights of version k - tau_m, each read consistently,
             x_{k+1} = x_k - gamma_k sum_{m=1..M} g(x_{k - tau_m}, xi_m),        tau_m <= T
         The learning rate of Theorem 1, with L the smoothness of the loss,
             L M gamma_k + 2 L^2 M^2 T gamma_k sum_{j=1..T} gamma_{k+j} <= 1
         With a constant learning rate and a = L M gamma: a + 2 T^2 a^2 <= 1.
         The staleness bound T as deadlines: of the gradients still to be applied, let n(d) be the number that must be applied at version d
         or before (d = version pulled + T). At version v, with j gradients in the next update already, all deadlines can be met if and
         only if
             n(d) <= M (d - v + 1) - j        for every d
Units:   tau, T, v and d in updates.
Differs: the paper assumes delays of at most T; here T is enforced, by letting fast workers wait (as in stale synchronous parallel
         training, Ho et al. 2013). With T = 0 this is synchronous SGD. Gradients may be averaged instead of summed, with
         M times the learning rate; gradients are then weighted by their number of samples.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bigbatch.core.checks import check_positive
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Asynchronous SGD",
    title="Asynchronous Parallel Stochastic Gradient for Nonconvex Optimization",
    authors="Lian et al.",
    year=2015,
    arxiv="1506.08272",
    where="Algorithm 1",
    study="studies/staleness",
)
Reduction = Literal["mean", "sum"]


def can_meet_deadlines(deadlines: Sequence[int], *, version: int, collected: int, gradients_per_update: int) -> bool:
    """Whether every gradient still to be applied can meet its deadline, in any order of arrival.

    Args:
        deadlines: For each gradient, the last version at which it may be applied.
        version: v, updates made so far.
        collected: j, gradients already in the next update.
        gradients_per_update: M.

    >>> can_meet_deadlines([0, 1, 1], version=0, collected=0, gradients_per_update=1)
    False
    >>> can_meet_deadlines([0, 1, 2], version=0, collected=0, gradients_per_update=1)
    True
    """
    return all(
        number <= gradients_per_update * (deadline - version + 1) - collected for number, deadline in enumerate(sorted(deadlines), start=1)
    )


def gradient_weights(num_samples: Sequence[int], reduction: Reduction) -> list[float]:
    """Weights of the mean gradients of the work items of an update.

    Args:
        num_samples: Of each work item.
        reduction: "mean": over all samples; "sum": M times that, the sum of the M gradients if all have the same number of samples.

    >>> gradient_weights([30, 10], "mean"), gradient_weights([30, 10], "sum"), gradient_weights([20, 20], "sum")
    ([0.75, 0.25], [1.5, 0.5], [1.0, 1.0])
    """
    times = len(num_samples) if reduction == "sum" else 1
    return [times * n / sum(num_samples) for n in num_samples]


class EquivalentSettings(NamedTuple):
    """Settings of an optimizer for a reduction."""

    lr: float
    weight_decay: float
    clip_norm: float | None


def equivalent_settings(
    lr: float, weight_decay: float, clip_norm: float | None, *, num_gradients: int, reduction: Reduction
) -> EquivalentSettings:
    """The settings with which SGD takes the same step with the sum of M gradients as with their mean and the given settings.

    >>> equivalent_settings(0.5, 0.01, None, num_gradients=4, reduction="sum")
    EquivalentSettings(lr=0.125, weight_decay=0.04, clip_norm=None)
    """
    times = num_gradients if reduction == "sum" else 1
    return EquivalentSettings(lr / times, weight_decay * times, None if clip_norm is None else clip_norm * times)


def largest_lr(*, smoothness: float, gradients_per_update: int, staleness_bound: int) -> float:
    """gamma: the largest constant learning rate, for the *sum* of M gradients, for which Theorem 1 holds.

    Use it for scaling only, 1 / (M T): the smoothness L of a network is not known.

    Args:
        smoothness: L, Lipschitz constant of the gradient.
        gradients_per_update: M.
        staleness_bound: T.

    Raises:
        UserError: If an argument is not positive (T may be zero).

    >>> largest_lr(smoothness=1.0, gradients_per_update=1, staleness_bound=0), largest_lr(smoothness=2.0, gradients_per_update=1,
    ...     staleness_bound=1)
    (1.0, 0.25)
    """
    check_positive("smoothness", smoothness)
    check_positive("gradients_per_update", gradients_per_update)
    T = staleness_bound
    a = (math.sqrt(1 + 8 * T**2) - 1) / (4 * T**2) if T else 1.0
    return a / (smoothness * gradients_per_update)
