r"""Staleness damping: the staler a gradient, the smaller its step.

Paper:   Zhang, Gupta, Lian, Liu 2016, Staleness-aware Async-SGD for Distributed Deep Learning, arXiv:1511.05950, the rule of the
         learning rate for n-softsync.
Formula: the learning rate of a gradient of staleness tau (updates between its pull and its application), with alpha_0 that of SGD,
             alpha = alpha_0 / tau    if tau > 0,     alpha = alpha_0    if tau = 0           ("inverse")
         A smoother variant:                alpha = alpha_0 / (1 + tau)                      ("inverse_plus_one")
Units:   tau in updates.
Differs: an update of several gradients has the mean of their factors in its learning rate, and each gradient its own factor in its weight,
         instead of a learning rate per gradient: the same for plain SGD, and effective with optimizers that normalise gradients too.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Staleness-aware asynchronous SGD",
    title="Staleness-aware Async-SGD for Distributed Deep Learning",
    authors="Zhang, Gupta, Lian, Liu",
    year=2016,
    arxiv="1511.05950",
    where="learning rate of n-softsync",
    study="studies/staleness",
)
Damping = Literal["none", "inverse", "inverse_plus_one"]
DAMPINGS: tuple[Damping, ...] = ("none", "inverse", "inverse_plus_one")


def damping_factor(staleness: int, damping: Damping) -> float:
    """Factor of the learning rate for one gradient.

    Raises:
        UserError: If there is no such damping.

    >>> [damping_factor(tau, "inverse") for tau in (0, 1, 4)], [damping_factor(tau, "inverse_plus_one") for tau in (0, 1, 4)]
    ([1.0, 1.0, 0.25], [1.0, 0.5, 0.2])
    """
    match damping:
        case "none":
            return 1.0
        case "inverse":
            return 1 / max(staleness, 1)
        case "inverse_plus_one":
            return 1 / (1 + staleness)
    raise UserError(unknown("damping", damping, DAMPINGS))


class Damped(NamedTuple):
    """Damping of an update of several gradients."""

    factor: float  # of the learning rate
    weights: list[float]  # of the gradients


def damped(weights: Sequence[float], staleness: Sequence[int], damping: Damping) -> Damped:
    """Split each gradient's weight times its factor into a common factor and new weights.

    Args:
        weights: Weights of the gradients without damping.
        staleness: tau of each.
        damping: The rule.

    >>> damped([0.5, 0.5], [0, 2], "inverse")
    Damped(factor=0.75, weights=[0.6666666666666666, 0.3333333333333333])
    """
    factors = [damping_factor(tau, damping) for tau in staleness]
    products = [w * f for w, f in zip(weights, factors, strict=True)]
    factor = sum(products) / sum(weights)
    return Damped(factor, [p / factor for p in products])
