r"""LARS, layer-wise adaptive rate scaling: momentum SGD whose rate for a layer is in proportion to |w| / |g|.

Paper:   You, Gitman, Ginsburg 2017, Large Batch Training of Convolutional Networks, arXiv:1708.03888, Algorithm 1.
Formula: for each parameter tensor, with |.| its Euclidean norm,
             lambda = eta |w| / (|g| + beta |w| + eps)        1 where |w| or |g| is zero
             v <- m v + gamma lambda (g + beta w)
             w <- w - v                                       nesterov: w - (m v + gamma lambda (g + beta w))
         gamma: lr, eta: trust_coefficient, beta: weight_decay, m: momentum.
Differs: nowhere by default (the paper has no eps: 0). Tensors of groups with adapt=False have lambda = 1; the paper adapts all, every
         accurate implementation leaves norms and biases out. lr_in_momentum=False is the other common placement,
         v <- m v + lambda (g + beta w), w <- w - gamma v; the two are equal while gamma is constant.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.multi_tensor import BLOCK, block_limit, blocks, flat, take
from bigbatch.core.tensors.norms import norms, ratio_or_one
from bigbatch.core.tensors.sharding import sharded_axes
from bigbatch.optim.base import BaseOptimizer, Rate, buffers, check_rate, widened
from bigbatch.optim.batches import Batch
from bigbatch.optim.decay_groups import decay_groups
from bigbatch.optim.kernels.launch import made_by_kernels
from bigbatch.recipe.base import Momentum, Positive
from bigbatch.recipe.sections import LayerWise

PAPER = Paper(
    method="LARS",
    title="Large Batch Training of Convolutional Networks",
    authors="You, Gitman, Ginsburg",
    year=2017,
    arxiv="1708.03888",
    where="Algorithm 1",
    study="studies/optimizers",
)


def trust_ratio(weight_norm: Tensor, grad_norm: Tensor, *, trust_coefficient: float, weight_decay: float, eps: float = 0.0) -> Tensor:
    """The layer's own rate, lambda; 1 where a norm is zero.

    Args:
        weight_norm: |w|, any shape.
        grad_norm: |g|, same shape.
        trust_coefficient: eta.
        weight_decay: beta.
        eps: Added to the denominator.

    >>> trust_ratio(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 3.0]), trust_coefficient=0.5, weight_decay=0.5)
    tensor([0.2500, 1.0000])
    """
    denominator = grad_norm + weight_decay * weight_norm + eps
    return ratio_or_one(trust_coefficient * weight_norm, torch.where(grad_norm == 0, 0, denominator))


class LARS(BaseOptimizer):
    """Layer-wise adaptive rate scaling; see the module's docstring for the rule.

    Args:
        params: Parameters, or groups such as `bigbatch.optim.param_groups` builds; group settings are `weight_decay` and `adapt`.
        lr: Global rate gamma; with the paper's eta of 0.001, between 2 and 40.
        momentum: m, in [0, 1).
        weight_decay: beta, added to the gradient.
        trust_coefficient: eta.
        eps: Added to the denominator of the trust ratio.
        nesterov: Look one step of momentum ahead.
        lr_in_momentum: Whether the buffer accumulates rates along with gradients, as in the paper.
        adapt: Whether tensors get a trust ratio.
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> w.grad = torch.tensor([0.0, 10.0])
    >>> LARS([w], lr=1.0, trust_coefficient=0.1).step()
    >>> w  # a step of 0.1 |w| along the gradient
    tensor([3.0000, 3.5000], requires_grad=True)
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 10.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        lr_in_momentum: bool = True,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "lr_in_momentum": lr_in_momentum,
            "adapt": adapt,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group."""
        super().check_group(group)
        check_rate("trust_coefficient", group["trust_coefficient"])

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """One update of tensors of one group."""
        if made_by_kernels("lars", group, batch):
            return
        if _can_fuse(group, batch):
            _fused_update(group, batch)
            return
        weights, grads, velocities = ([flat(t) for t in ts] for ts in (batch.params, batch.grads, buffers(batch, "momentum_buffer")))
        rates = _rates(group, weights, grads, batch.where) if group["adapt"] else None
        scales: Any = group["lr"] if group["lr_in_momentum"] else 1.0
        each = rates.unbind() if rates is not None else None
        for block in blocks(tuple(w.numel() for w in weights), block_limit(weights[0].device)):
            if each is not None:
                scales = [each[p.number] for p in block]
            _apply(take(weights, block), take(grads, block), take(velocities, block), scales, group)


class LARSSection(LayerWise):
    """bigbatch.optim.LARS."""

    published_decay: ClassVar[float] = 1e-4  # on ResNet-50

    name: Literal["lars"] = "lars"
    momentum: Momentum = 0.9
    nesterov: bool = False
    trust_coefficient: Positive = 0.001
    lr_in_momentum: bool = True


@OPTIMIZERS.register("lars", LARSSection)
def build(o: LARSSection, model: nn.Module, _: Any) -> LARS:
    """The recipe's optimizer at its peak rate."""
    return LARS(
        decay_groups(model, o),
        lr=o.lr,
        momentum=o.momentum,
        nesterov=o.nesterov,
        trust_coefficient=o.trust_coefficient,
        lr_in_momentum=o.lr_in_momentum,
    )


def _rates(group: dict[str, Any], weights: list[Tensor], grads: list[Tensor], where: Any) -> Tensor:
    weight_norm, grad_norm = norms(weights, grads, where=where)
    settings = {name: group[name] for name in ("trust_coefficient", "weight_decay", "eps")}
    rates = trust_ratio(weight_norm, grad_norm, **settings)
    return rates * group["lr"] if group["lr_in_momentum"] else rates


def _apply(weights: list[Tensor], grads: list[Tensor], velocities: list[Tensor], scales: Any, group: dict[str, Any]) -> None:
    """One block: v <- m v + scale (g + beta w), w <- w - v or its Nesterov form."""
    wide = widened(weights, velocities[0].dtype)
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"]:
        steps = torch._foreach_add(grads, wide, alpha=group["weight_decay"])
        torch._foreach_mul_(steps, scales)
    else:
        steps = torch._foreach_mul(widened(grads, wide[0].dtype), scales)
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, steps)
    if group["nesterov"]:
        torch._foreach_add_(steps, velocities, alpha=group["momentum"])
    else:
        steps = tuple(velocities)
    if not group["lr_in_momentum"]:
        steps = torch._foreach_mul(steps, group["lr"])
    torch._foreach_sub_(wide, steps)
    if wide is not weights:
        torch._foreach_copy_(weights, wide)


def _can_fuse(group: dict[str, Any], batch: Batch) -> bool:
    """Whether torch's fused SGD can stand in: on a CPU, where reading a rate waits for nothing; float32, momentum, no Nesterov."""
    p = batch.params[0]
    if p.device.type != "cpu" or p.dtype != torch.float32 or torch.compiler.is_compiling() or sharded_axes(batch.where):
        return False
    return bool(group["momentum"]) and not group["nesterov"] and not isinstance(group["lr"], Tensor)


def _fused_update(group: dict[str, Any], batch: Batch) -> None:
    """The same update, tensor by tensor, in one pass over its memory while the pass for its norms has left it in the cache.

    torch's fused SGD does v <- m v + (1 - dampening) (g + beta w), which is ours with 1 - dampening as the tensor's rate. It forms the
    difference in float64, so that rates down to 1e-9 keep the precision of float32.
    """
    velocities, inside = buffers(batch, "momentum_buffer"), group["lr"] if group["lr_in_momentum"] else 1.0
    settings = {
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "lr": 1.0 if group["lr_in_momentum"] else group["lr"],
        "nesterov": False,
        "maximize": group["maximize"],
        "is_first_step": False,
    }
    if not group["adapt"]:
        torch._fused_sgd_(batch.params, batch.grads, velocities, dampening=1.0 - inside, **settings)
        return
    for w, g, v in zip(batch.params, batch.grads, velocities, strict=True):
        rate = _ratio(_norm(w), _norm(g), group) * inside
        torch._fused_sgd_([w], [g], [v], dampening=1.0 - rate, **settings)


def _norm(tensor: Tensor) -> float:
    """The Euclidean norm of a float32 tensor on a CPU, added up piece by piece in float64.

    A dot product runs on all threads, where `vector_norm` of one tensor runs on one, and costs half as much to call. Over all of a tensor
    of 40 million elements, float32 sums would be off by a thousandth.
    """
    return math.sqrt(math.fsum(torch.dot(piece, piece).item() for piece in torch.split(flat(tensor), BLOCK)))


def _ratio(weight_norm: float, grad_norm: float, group: dict[str, Any]) -> float:
    """`trust_ratio` for numbers: 5 microseconds a tensor less."""
    denominator = grad_norm + group["weight_decay"] * weight_norm + group["eps"]
    return group["trust_coefficient"] * weight_norm / denominator if weight_norm and grad_norm else 1.0
