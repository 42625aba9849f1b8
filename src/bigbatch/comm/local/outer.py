"""The outer optimizer of local steps: SGD with momentum on the displacement of the weights between two exchanges."""

from typing import NamedTuple

import torch
from torch import Tensor

NO_BEFORE_STEP = "after_step without before_step: the weights before the period are not known; call both around each step"


class OuterState(NamedTuple):
    """Of some of the weights, flat.

    Attributes:
        weights: theta, shape (n,): the weights that all workers had after the last exchange.
        velocity: u, shape (n,).
    """

    weights: Tensor
    velocity: Tensor


def outer_state(weights: Tensor) -> OuterState:
    """The state before the first exchange. Half precision is kept as float32: small outer steps would be rounded away.

    Args:
        weights: Shape (n,).
    """
    weights = weights.detach().clone() if weights.dtype in (torch.float32, torch.float64) else weights.detach().float()
    return OuterState(weights, torch.zeros_like(weights))


def outer_step_(state: OuterState, displacement: Tensor, *, lr: float, momentum: float, nesterov: bool = True) -> None:
    """One step, in place: u <- mu u + Delta, then theta <- theta - eta (Delta + mu u), or theta - eta u without Nesterov's look-ahead.

    Args:
        state: theta and u.
        displacement: Delta, shape (n,): theta minus the mean of the workers' weights. It stands for a gradient.
        lr: eta.
        momentum: mu.
        nesterov: Whether the step looks ahead.

    >>> state = outer_state(torch.tensor([1.0]))
    >>> for _ in range(2):
    ...     outer_step_(state, torch.tensor([0.5]), lr=0.5, momentum=0.5)
    >>> state.weights, state.velocity  # 1 - 0.5 (0.5 + 0.25), then - 0.5 (0.5 + 0.375)
    (tensor([0.1875]), tensor([0.7500]))
    """
    state.velocity.mul_(momentum).add_(displacement)
    step = displacement.add(state.velocity, alpha=momentum) if nesterov else state.velocity
    state.weights.sub_(step, alpha=lr)
