r"""D-PSGD: average with the neighbours while the gradient is computed.

Paper:   Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, Can Decentralized Algorithms Outperform Centralized Algorithms?,
         arXiv:1705.09056, Algorithm 1.
Formula: worker i, update k, in parallel and both at x_k,i:
             g_i       = mean gradient over the local batch
             x_k+1/2,i = sum_j W_ij x_k,j
         then
             x_k+1,i   = x_k+1/2,i - gamma g_i
         The result is the mean of all x_i.
Rate:    with momentum beta on a quadratic of curvature L, stable while gamma L < (1 + l)(1 + beta), l the least eigenvalue of W (-1/3 on an
         even ring): a third of all-reduce's 2 (1 + beta) there.
Units:   a message has the size of the weights; as many as there are neighbours.
Differs: any torch optimizer may stand for gamma g_i: it steps from x_k,i, and what it changed is added to x_k+1/2,i, so that weight
         decay and layer-wise norms are those at x_k,i. With momentum SGD this is AWC-DmSGD (Balu et al. 2020, arXiv:2010.11166).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.optim import Optimizer

from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="D-PSGD",
    title="Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel SGD",
    authors="Lian, Zhang, Zhang, Hsieh, Zhang, Liu",
    year=2017,
    arxiv="1705.09056",
    where="Algorithm 1",
    study="studies/decentralised",
)


class DPSGD(Gossip):
    """See the module's docstring for the rule.

    The exchange starts with the first pass of an update and ends after the optimizer's step: on a fast network it is hidden entirely.
    """

    def sync_context(self, last: bool) -> AbstractContextManager[object]:  # noqa: ARG002
        """Start to exchange the weights that the passes of this update use."""
        if self._exchange is not None and not self._exchange.in_progress and not self.in_warmup_pass:
            self._exchange.start(self._flat_weights(), self.updates)
        return nullcontext()

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Add the mixing term to the step: x_k+1 = x_k + step + mixing(x_k)."""
        self.updates = updates
        if self._exchange is not None:
            self._add(self._exchange.wait())
