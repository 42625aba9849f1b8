r"""DmSGD: step, then average with the neighbours (adapt-then-combine).

Paper:   Yuan, Chen, Huang, Zhang, Pan, Xu, Yin 2021, DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training,
         arXiv:2104.11981, Algorithm 1 (the method that it improves on; as in Assran et al. 2019 and Gao and Huang 2020).
Formula: worker i, momentum beta, rate gamma, mean gradient g_i of its local batch at x_k,i:
             m_k+1,i = beta m_k,i + g_i
             x_k+1,i = sum_j W_ij (x_k,j - gamma m_k+1,j)
Rate:    on a quadratic of curvature L, stable while gamma L < (1 - beta)(1 - 1/l) where that is below all-reduce's 2 (1 + beta) and l, the
         least eigenvalue of W, is negative: 0.4 instead of 3.8 with beta = 0.9 on an even ring.
Units:   a message has the size of the weights; as many as there are neighbours.
Differs: any torch optimizer may stand for gamma m. Weight decay is the optimizer's: torch's SGD adds it to g_i, as here.
"""

import torch
from torch.optim import Optimizer

from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="DmSGD",
    title="DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training",
    authors="Yuan, Chen, Huang, Zhang, Pan, Xu, Yin",
    year=2021,
    arxiv="2104.11981",
    where="Algorithm 1",
    study="studies/decentralised",
)


class DmSGD(Gossip):
    """See the module's docstring for the rule.

    The exchange needs the result of the step, so it cannot overlap with computation; in return the consensus distance is smaller than with
    D-PSGD.
    """

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Average the weights after the step with the neighbours'."""
        if self._exchange is not None:
            self._exchange.start(self._flat_weights(), self.updates)
            self._add(self._exchange.wait())
        self.updates = updates
