r"""Momentum correction, for optimizers that keep the learning rate inside the momentum buffer.

Paper:   Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, Section 3, Remark 2 (Equation 10).
Formula: v_{t+1} = m (eta_{t+1} / eta_t) v_t + eta_{t+1} g_t,   w_{t+1} = w_t - v_{t+1}
         so multiply m by eta_{t+1} / eta_t for the one update at which the rate changes.
Differs: where eta_t = 0 (a ramp from zero) the buffer holds nothing, and m stays as it is.
Note:    torch.optim.SGD keeps the rate outside the buffer: there this correction would be wrong.
"""

from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Momentum correction",
    title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    authors="Goyal et al.",
    year=2017,
    arxiv="1706.02677",
    where="Section 3, Remark 2",
)


def corrected_momentum(momentum: float, *, lr: float, previous_lr: float) -> float:
    """The momentum to use for an update at rate `lr` when the update before it used `previous_lr`.

    >>> corrected_momentum(0.9, lr=0.2, previous_lr=0.1)
    1.8
    """
    return momentum * lr / previous_lr if previous_lr > 0 else momentum
