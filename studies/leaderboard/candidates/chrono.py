"""Chrono initialisation of LSTMs: gates that begin with memories of all lengths up to that of the sequence.

Source: Tallec & Ollivier 2018, Can recurrent neural networks warp time?, arXiv:1804.11188, Section 3.
Rule:   forget bias log U(1, T - 1), input bias its negative, all other biases 0; T is the sequence's length. The rest is the Muon rule's.
"""

from typing import Literal

import torch
from plain_muon import PlainMuon
from torch import nn

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = ({}, {"optimizer.length": 8}, {"optimizer.input_gates": False}, {"optimizer.length": 8, "optimizer.input_gates": False})


class ChronoSection(MuonSection):
    """In a recipe."""

    name: Literal["chrono"] = "chrono"
    length: int = 28
    input_gates: bool = True


def recipe(planned):
    """The Muon rule's plan with this initialisation."""
    return planned.replace({"optimizer.name": "chrono"})


@OPTIMIZERS.register("chrono", ChronoSection)
def build(section, model, _):
    """For a recipe; the model is at its beginning."""
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            start(module, section)
    return PlainMuon(model, section)


@torch.no_grad()
def start(lstm, section):
    """Set the biases; torch's order of gates is input, forget, cell, output."""
    n = lstm.hidden_size
    for layer in range(lstm.num_layers):
        ours, other = getattr(lstm, f"bias_hh_l{layer}"), getattr(lstm, f"bias_ih_l{layer}")
        ours.zero_()
        other.zero_()
        spread = torch.empty(n).uniform_(1, section.length - 1).log()
        ours[n : 2 * n] = spread
        if section.input_gates:
            ours[:n] = -spread
