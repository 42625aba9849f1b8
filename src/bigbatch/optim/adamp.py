r"""AdamP: Adam without the part of its step that only makes scale-invariant weights longer.

Paper:   Heo et al. 2020, AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, arXiv:2006.08217,
         Algorithm 2.
Formula: m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p = [m / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps)
         if max_rows |cos(g, w)| < delta / sqrt(dim):   p <- p - w^ (w^ . p),   ratio = wd_ratio      (else ratio = 1)
         w <- w (1 - eta lambda ratio) - eta p
         tried on rows (output channels), then on the layer; tensors of one dimension are left alone. eta: lr, lambda: weight_decay.
Differs: nowhere from the released code, which divides w . g by the norms and the threshold by sqrt(dim); the paper's figure does
         not. The test never waits for the device.
"""

from typing import Any, ClassVar, Literal

import torch  # noqa: F401 doctest
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.multi_tensor import Piece, flat, take
from bigbatch.optim.adam import adam_directions, corrections
from bigbatch.optim.base import Rate, buffers
from bigbatch.optim.batches import Batch
from bigbatch.optim.decay_groups import decay_groups
from bigbatch.optim.kernels.launch import made_by_kernels
from bigbatch.optim.projected import ProjectedOptimizer, projected_step
from bigbatch.recipe.base import NotNegative, Positive
from bigbatch.recipe.sections import Betas, UniformDecay

PAPER = Paper(
    method="AdamP",
    title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    authors="Heo et al.",
    year=2020,
    arxiv="2006.08217",
    where="Algorithm 2",
    study="studies/optimizers",
)


def decayed_fraction(lr: Rate, weight_decay: float) -> Rate:
    """Share of the weights that decays in one update of a tensor that is not projected.

    >>> decayed_fraction(0.5, 0.25)
    0.125
    """
    return lr * weight_decay


class AdamP(ProjectedOptimizer):
    """Adam with the projection; see the module's docstring for the rule.

    Args:
        params: Parameters or groups.
        lr: eta.
        betas: b1 and b2, each in [0, 1).
        eps: Added to sqrt(v^) and to |w|.
        weight_decay: lambda, decoupled from the gradient, times the rate.
        delta: Threshold of the cosine.
        wd_ratio: Share of the decay that is left to projected tensors.
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.

    >>> w = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> w.grad = torch.tensor([[4.0, -3.0]])  # at right angles to w: Adam's step (1, -1) would make w shorter
    >>> AdamP([w], lr=0.1).step()
    >>> w
    tensor([[2.8880, 4.0840]], requires_grad=True)
    """

    state_names = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """One update of tensors of one group."""
        if made_by_kernels("adamp", group, batch):
            return
        grads = [flat(g) for g in batch.grads]
        firsts, seconds = ([flat(t) for t in buffers(batch, name)] for name in ("exp_avg", "exp_avg_sq"))
        bias = corrections(batch, group["betas"])

        def directions(run: range, block: tuple[Piece, ...]) -> list[Tensor]:
            gs, ms, vs = (take(ts[run.start : run.stop], block) for ts in (grads, firsts, seconds))
            return adam_directions(gs, ms, vs, group, bias.of(run.start + p.number for p in block))

        projected_step(group, batch, directions, decay=decayed_fraction(group["lr"], group["weight_decay"]))


class AdamPSection(UniformDecay):
    """bigbatch.optim.AdamP."""

    published_decay: ClassVar[float] = 0.01

    name: Literal["adamp"] = "adamp"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    delta: NotNegative = 0.1
    wd_ratio: NotNegative = 0.1

    @property
    def decay_divisor(self) -> float:
        """Decay is the rate times it."""
        return 1.0


@OPTIMIZERS.register("adamp", AdamPSection)
def build(o: AdamPSection, model: nn.Module, _: Any) -> AdamP:
    """The recipe's optimizer at its peak rate."""
    return AdamP(decay_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps, delta=o.delta, wd_ratio=o.wd_ratio)
