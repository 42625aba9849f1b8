"""soap_outer.py with the forget gates of chrono.py; on a model without an LSTM it is soap_outer."""

from typing import Literal

import chrono
from torch import nn

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.soap_muon_section import SoapMuonSection

OUTER = {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3}
CHOICES = ({}, OUTER, {"optimizer.length": 8}, {"optimizer.length": 8, **OUTER})
RULE = "soap_muon"


class SoapChronoSection(SoapMuonSection):
    """In a recipe."""

    name: Literal["soap_chrono"] = "soap_chrono"
    length: int = 28
    input_gates: bool = False


def recipe(planned):
    """The plan of rule `soap_muon`, wrapped."""
    outer = {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}
    return planned.replace({"optimizer.name": "soap_chrono", "comm": outer})


@OPTIMIZERS.register("soap_chrono", SoapChronoSection)
def build(section, model, group):
    """For a recipe; the model is at its beginning."""
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            chrono.start(module, section)
    return OPTIMIZERS["soap_muon"].build(section, model, group)
