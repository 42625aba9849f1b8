"""SOAP before Muon in a recipe. Nothing here imports torch before it is built, as in muon_section.py."""

from typing import TYPE_CHECKING, Any, Literal

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection
from bigbatch.recipe.base import Count, Momentum, NotNegative

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class SoapMuonSection(MuonSection):
    """bigbatch.optim.SoapMuon: as `muon`, and the settings of the preconditioner."""

    name: Literal["soap_muon"] = "soap_muon"  # type: ignore[assignment]
    beta2: Momentum = 0.9
    damping: NotNegative = 0.1
    longest: Count = 8192


@OPTIMIZERS.register("soap_muon", SoapMuonSection)
def build(o: SoapMuonSection, model: "nn.Module", _: Any) -> "Optimizer":
    """The optimizer at its peak rates; every worker does all of its work."""
    from bigbatch.optim.muon.soap_muon import SoapMuon, soap_muon_groups

    groups = soap_muon_groups(model, lr=o.lr, adam_lr=o.adam_lr, weight_decay=o.weight_decay, overrides=o.groups)
    own: dict[str, Any] = {"beta2": o.beta2, "damping": o.damping, "longest": o.longest}
    return SoapMuon(groups, momentum=o.momentum, nesterov=o.nesterov, betas=o.betas, eps=o.eps, **own)
