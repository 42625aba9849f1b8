"""Muon in a recipe. Nothing here imports torch before it is built: plans need none, and `auto` plans for Muon."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.recipe.base import Momentum, Positive
from bigbatch.recipe.sections import Betas, OptimizerSection

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

MuonGroups = Annotated[dict[str, Literal["muon", "adam"]], Field(min_length=1)]


class MuonSection(OptimizerSection):
    """bigbatch.optim.Muon: `lr`, `momentum` and `weight_decay` are of the orthogonalised matrices, `adam_lr` is of all else."""

    rates: ClassVar[tuple[str, ...]] = ("lr", "adam_lr")
    groups_by: ClassVar[Literal["decay", "muon"]] = "muon"
    published_decay: ClassVar[float] = 0.1  # at scale (Liu et al. 2025)

    name: Literal["muon"] = "muon"
    adam_lr: Positive
    momentum: Momentum = 0.95
    nesterov: bool = True
    betas: Betas = (0.9, 0.95)
    eps: Positive = 1e-8
    groups: MuonGroups | None = None  # patterns of parameter names to who updates them, where `bigbatch plan --groups` shows another

    @property
    def decay_divisor(self) -> float:
        """Decay of the matrices is the rate times it."""
        return 1.0


@OPTIMIZERS.register("muon", MuonSection)
def build(o: MuonSection, model: "nn.Module", process_group: Any) -> "Optimizer":
    """The optimizer at its peak rates; workers of the process group share its work."""
    from bigbatch.optim.muon.muon import Muon
    from bigbatch.optim.muon.muon_split import muon_groups

    groups = muon_groups(model, lr=o.lr, adam_lr=o.adam_lr, weight_decay=o.weight_decay, overrides=o.groups)
    return Muon(groups, momentum=o.momentum, nesterov=o.nesterov, betas=o.betas, eps=o.eps, process_group=process_group)
