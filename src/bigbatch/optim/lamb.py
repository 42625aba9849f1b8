r"""LAMB: Adam's direction, rescaled in each layer so that its step is in proportion to the norm of the weights.

Paper:   You et al. 2019, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962, Algorithm 2.
Formula: for each parameter tensor, with |.| its Euclidean norm,
             m <- b1 m + (1 - b1) g,          v <- b2 v + (1 - b2) g^2
             m^ = m / (1 - b1^t),             v^ = v / (1 - b2^t)
             u  = m^ / (sqrt(v^) + eps) + lambda w
             w <- w - eta (phi(|w|) / |u|) u                  ratio 1 where a norm is zero
         eta: lr, lambda: weight_decay, phi the identity.
Differs: phi is the identity, as in the authors' code (no clamp of |w|, no clamp of the ratio); gradients are not clipped (clip them
         yourself, after the all-reduce). bias_correction=False leaves m^ = m and v^ = v, as the authors' ImageNet run does. Tensors
         of groups with adapt=False have ratio 1.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.multi_tensor import block_limit, blocks, flat, runs, take
from bigbatch.core.tensors.norms import norms, ratio_or_one
from bigbatch.core.tensors.sharding import sharded_axes
from bigbatch.optim.adam import adam_directions, corrections, fuses
from bigbatch.optim.base import BaseOptimizer, Rate, buffers, subtract, widened
from bigbatch.optim.batches import Batch
from bigbatch.optim.decay_groups import decay_groups
from bigbatch.optim.kernels.launch import made_by_kernels
from bigbatch.recipe.base import Positive
from bigbatch.recipe.sections import Betas, LayerWise

PAPER = Paper(
    method="LAMB",
    title="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    authors="You et al.",
    year=2019,
    arxiv="1904.00962",
    where="Algorithm 2",
    study="studies/optimizers",
)


def trust_ratio(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """|w| / |u|, and 1 where either is zero.

    >>> trust_ratio(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 4.0]))
    tensor([0.5000, 1.0000])
    """
    return ratio_or_one(weight_norm, update_norm)


class LAMB(BaseOptimizer):
    """Layer-wise adaptive moments; see the module's docstring for the rule.

    Args:
        params: Parameters, or groups such as `bigbatch.optim.param_groups` builds; group settings are `weight_decay` and `adapt`.
        lr: eta; the step of an adapted tensor is exactly lr |w| long.
        betas: b1 and b2, each in [0, 1).
        eps: Added to sqrt(v^).
        weight_decay: lambda; inside the update and inside its norm.
        bias_correction: Whether moments are divided by 1 - b^t.
        adapt: Whether tensors get a trust ratio.
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> w.grad = torch.tensor([0.0, 10.0])
    >>> LAMB([w], lr=0.1).step()
    >>> w  # a step of 0.1 |w| along Adam's direction
    tensor([3.0000, 3.5000], requires_grad=True)
    """

    state_names = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "adapt": adapt,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """One update of tensors of one group."""
        if made_by_kernels("lamb", group, batch):
            return
        weights, grads = [flat(t) for t in batch.params], [flat(t) for t in batch.grads]
        firsts, seconds = ([flat(t) for t in buffers(batch, name)] for name in ("exp_avg", "exp_avg_sq"))
        bias = corrections(batch, group["betas"]) if group["bias_correction"] else None
        limit, sharded = block_limit(weights[0].device), bool(sharded_axes(batch.where))
        for run in runs(tuple(w.numel() for w in weights), 0 if sharded else limit):
            ws, gs, ms, vs = (ts[run.start : run.stop] for ts in (weights, grads, firsts, seconds))
            near = blocks(tuple(w.numel() for w in ws), 0 if fuses(gs[0], ms[0]) else limit)
            updates = [torch.empty_like(m) for m in ms] if len(near) > 1 else None
            for block in near:
                part = take(ws, block)
                us = adam_directions(
                    take(gs, block), take(ms, block), take(vs, block), group, bias and bias.of(run.start + p.number for p in block)
                )
                if group["weight_decay"]:
                    torch._foreach_add_(us, widened(part, us[0].dtype), alpha=group["weight_decay"])
                if updates is None:
                    updates = us
                else:
                    torch._foreach_copy_(take(updates, block), us)
            assert updates is not None
            rates = self._rates(group, ws, updates, batch.where)
            for block in near:
                step = take(updates, block)
                torch._foreach_mul_(step, group["lr"] if rates is None else [rates[p.number] for p in block])
                subtract(take(ws, block), step)

    def _rates(self, group: dict[str, Any], weights: list[Tensor], updates: list[Tensor], where: Any) -> list[Tensor] | None:
        if not group["adapt"]:
            return None
        weight_norm, update_norm = norms(weights, updates, where=where)
        return list((trust_ratio(weight_norm, update_norm) * group["lr"]).unbind())


class LAMBSection(LayerWise):
    """bigbatch.optim.LAMB."""

    published_decay: ClassVar[float] = 0.01  # on BERT

    name: Literal["lamb"] = "lamb"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-6
    bias_correction: bool = True


@OPTIMIZERS.register("lamb", LAMBSection)
def build(o: LAMBSection, model: nn.Module, _: Any) -> LAMB:
    """The recipe's optimizer at its peak rate."""
    return LAMB(decay_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps, bias_correction=o.bias_correction)
