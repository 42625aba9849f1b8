r"""SGDP: momentum SGD without the part of its step that only makes scale-invariant weights longer.

Paper:   Heo et al. 2020, AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, arXiv:2006.08217,
         Algorithm 1.
Formula: v <- m v + (1 - dampening) g,   p = v   (nesterov: p = g + m v)
         if max_rows |cos(g, w)| < delta / sqrt(dim):   p <- p - w^ (w^ . p),   ratio = wd_ratio      (else ratio = 1)
         w <- w (1 - eta lambda ratio / (1 - m)) - eta p
         tried on rows (output channels), then on the layer; tensors of one dimension are left alone. eta: lr, lambda: weight_decay.
Differs: nowhere from the paper. The released code without Nesterov projects the stored momentum as well, which Algorithm 1 does not.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.multi_tensor import Piece, flat, take
from bigbatch.optim.base import Rate, buffers, check_below_one, widened
from bigbatch.optim.batches import Batch
from bigbatch.optim.decay_groups import decay_groups
from bigbatch.optim.kernels.launch import made_by_kernels
from bigbatch.optim.projected import ProjectedOptimizer, projected_step
from bigbatch.recipe.base import Momentum, NotNegative
from bigbatch.recipe.sections import UniformDecay

PAPER = Paper(
    method="SGDP",
    title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    authors="Heo et al.",
    year=2020,
    arxiv="2006.08217",
    where="Algorithm 1",
)


def decayed_fraction(lr: Rate, weight_decay: float, momentum: float) -> Rate:
    """Share of the weights that decays in one update of a tensor that is not projected: what L2 decay in torch's SGD comes to.

    >>> decayed_fraction(0.5, 0.25, 0.5)
    0.25
    """
    return lr * weight_decay / (1 - momentum)


class SGDP(ProjectedOptimizer):
    """Momentum SGD with the projection; see the module's docstring for the rule.

    Args:
        params: Parameters or groups.
        lr: eta.
        momentum: m, in [0, 1).
        dampening: Of the gradient in the momentum, in [0, 1).
        weight_decay: lambda, decoupled from the gradient; a value tuned for torch's SGD means about the same here.
        nesterov: Look one step of momentum ahead.
        eps: Added to |w|.
        delta: Threshold of the cosine.
        wd_ratio: Share of the decay that is left to projected tensors.
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.

    >>> w = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> w.grad = torch.tensor([[4.0, -3.0]])  # at right angles to w: nothing to take out
    >>> SGDP([w], lr=0.1).step()
    >>> w
    tensor([[2.6000, 4.3000]], requires_grad=True)
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 0.1,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group."""
        super().check_group(group)
        check_below_one("dampening", group["dampening"])

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """One update of tensors of one group."""
        if made_by_kernels("sgdp", group, batch):
            return
        grads, velocities = [flat(g) for g in batch.grads], [flat(v) for v in buffers(batch, "momentum_buffer")]
        m = group["momentum"]

        def directions(run: range, block: tuple[Piece, ...]) -> list[Tensor]:
            vs = take(velocities[run.start : run.stop], block)
            gs = widened(take(grads[run.start : run.stop], block), vs[0].dtype)
            if group["maximize"]:
                gs = list(torch._foreach_neg(gs))
            torch._foreach_mul_(vs, m)
            torch._foreach_add_(vs, gs, alpha=1 - group["dampening"])
            return list(torch._foreach_add(gs, vs, alpha=m)) if group["nesterov"] else vs

        decay = decayed_fraction(group["lr"], group["weight_decay"], m)
        projected_step(group, batch, directions, decay=decay, stored=None if group["nesterov"] else velocities)


class SGDPSection(UniformDecay):
    """bigbatch.optim.SGDP."""

    name: Literal["sgdp"] = "sgdp"
    momentum: Momentum = 0.0
    nesterov: bool = False
    delta: NotNegative = 0.1
    wd_ratio: NotNegative = 0.1

    @property
    def decay_divisor(self) -> float:
        """Decay is on the weights, and divided so by its authors."""
        return 1 - self.momentum


@OPTIMIZERS.register("sgdp", SGDPSection)
def build(o: SGDPSection, model: nn.Module, _: Any) -> SGDP:
    """The recipe's optimizer at its peak rate."""
    return SGDP(decay_groups(model, o), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, delta=o.delta, wd_ratio=o.wd_ratio)
