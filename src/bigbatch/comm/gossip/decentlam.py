r"""DecentLaM: momentum includes the mixing with neighbours, so that it no longer amplifies the differences between workers.

Paper:   Yuan, Chen, Huang, Zhang, Pan, Xu, Yin 2021, DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training,
         arXiv:2104.11981, Algorithm 2.
Formula: worker i, momentum beta, rate gamma, mean gradient g_i of its local batch at x_k,i, weight decay inside it:
             gt_i    = (1/gamma) x_k,i - (1/gamma) sum_j W_ij (x_k,j - gamma g_j)
             m_k+1,i = beta m_k,i + gt_i
             x_k+1,i = x_k,i - gamma m_k+1,i
         W symmetric and doubly stochastic.
Rate:    on a quadratic of curvature L, stable while gamma L < 2 (1 + beta), as all-reduce, and, where the least eigenvalue l of W is
         negative, < 1 - 1/l: 4 on an even ring, so no tighter bound.
Units:   a message has the size of the weights; as many as there are neighbours.
Differs: computed as gt_i = g_i - mixing_i / gamma with mixing_i = sum_j W_ij (s_j - s_i), s_j = x_j - gamma g_j: the same, without the
         difference of two large numbers. With gamma = 0 nothing moves, and gt_i = g_i. A large upward jump of the learning rate scales
         the consensus part of m with it, as in the paper; all schedules here are gradual except for steps down.
         The last two lines are torch.optim.SGD, given gt_i as its gradient.
"""

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="DecentLaM",
    title="DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training",
    authors="Yuan, Chen, Huang, Zhang, Pan, Xu, Yin",
    year=2021,
    arxiv="2104.11981",
    where="Algorithm 2",
    study="studies/decentralised",
)


def corrected_gradient(g: Tensor, mixing: Tensor, lr: float) -> Tensor:
    """Gt = g - mixing / gamma.

    Args:
        g: Gradient, weight decay included.
        mixing: sum_j W_ij (s_j - s_i) of s = x - gamma g, the same shape.
        lr: gamma.

    >>> corrected_gradient(torch.tensor([1.0]), torch.tensor([0.5]), 0.1)  # the neighbours are 0.5 ahead
    tensor([-4.])
    """
    return g - mixing / lr if lr else g


class DecentLaM(Gossip):
    """See the module's docstring for the rule. Under torch.optim.SGD with heavy-ball momentum."""

    symmetric = True

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Exchange x - gamma g, and replace g by gt for the optimizer.

        Raises:
            UserError: If the optimizer is not plain momentum SGD.
        """
        if self._exchange is None:
            return
        settings = _settings(optimizer)
        params = [p for p in self.model.parameters() if p.requires_grad]
        decayed = [(p.grad if p.grad is not None else torch.zeros_like(p)) + settings[p][1] * p for p in params]
        ahead = [p - settings[p][0] * g for p, g in zip(params, decayed, strict=True)]
        self._exchange.start(torch.cat([s.reshape(-1) for s in ahead]), self.updates)
        mixings = torch.split(self._exchange.wait(), [p.numel() for p in params])
        for p, g, mixing in zip(params, decayed, mixings, strict=True):
            lr, weight_decay = settings[p]
            p.grad = corrected_gradient(g, mixing.view_as(p), lr) - weight_decay * p  # which the optimizer adds again

    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Count the update; the exchange was before the step."""
        self.updates = updates


def _settings(optimizer: Optimizer) -> dict[Tensor, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    if not isinstance(optimizer, SGD) or any(g["nesterov"] or g["dampening"] or g["maximize"] for g in optimizer.param_groups):
        raise UserError(
            f"DecentLaM over {type(optimizer).__name__}: needs heavy-ball momentum; use torch.optim.SGD without nesterov or "
            "dampening (in a recipe: optimizer.name = sgd, optimizer.nesterov = false), or D-PSGD"
        )
    return {p: (float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]}
