"""Muon in the metric of each layer's inputs: what a layer hears less of is stepped along as far.

Source: K-FAC's right factor (Martens & Grosse 2015, arXiv:1503.05671) before and after orthogonalising; "Newton-Muon" in the step-count
        records of modded-nanogpt, track 3 (2026).
Rule:   A <- mean of x x' over the last updates, damped by `damping` times its mean eigenvalue;
        O = UV' of (Z A^-1/2) A^-1/2, of Muon's norm
"""

import math
from typing import Literal

import torch
from plain_muon import PlainMuon
from torch import nn
from torch.nn.functional import unfold

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection
from bigbatch.optim.muon.newton_schulz import orthogonalise

CHOICES = (
    {},
    {"optimizer.damping": 1.0},
    {"optimizer.damping": 0.03},
    {"optimizer.power": 1.0},
    {"optimizer.lr *": 0.7},
    {"optimizer.lr *": 1.4},
)


class WhitenedSection(MuonSection):
    """In a recipe."""

    name: Literal["whitened"] = "whitened"
    damping: float = 0.1
    beta: float = 0.9
    power: float = 0.5  # of A^-1 on the way out; 1/2 is the metric of A, 0 leaves Muon's step of a whitened momentum
    every: int = 4  # samples: the moments are those of every fourth


def recipe(planned):
    """The Muon rule's plan with this optimizer."""
    return planned.replace({"optimizer.name": "whitened"})


@OPTIMIZERS.register("whitened", WhitenedSection)
def build(section, model, _):
    """For a recipe."""
    return WhitenedInputs(model, section)


class WhitenedInputs(PlainMuon):
    """See above. Layers are linear, convolutions without groups, and LSTMs of one layer."""

    def __init__(self, model, section):
        super().__init__(model, section)
        self.sums = {}
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LSTM):
                module.register_forward_hook(self._watch)

    @torch.no_grad()
    def _watch(self, module, inputs, output):
        if not module.training:
            return
        x, every = inputs[0], self.section.every
        if isinstance(module, nn.LSTM):
            before = torch.cat([torch.zeros_like(output[0][:, :1]), output[0][:, :-1]], dim=1)  # batch first
            seen = {module.weight_ih_l0: x[::every], module.weight_hh_l0: before[::every]}
        elif isinstance(module, nn.Conv2d):
            how = {"padding": module.padding, "stride": module.stride}
            seen = {module.weight: unfold(x[::every].float(), module.kernel_size, **how).mT}
        else:
            seen = {module.weight: x[::every]}
        for p, rows in seen.items():
            flat = rows.reshape(-1, rows.shape[-1]).float()
            with torch.autocast("cpu", enabled=False):
                gram = flat.T @ flat
            total, count = self.sums.get(p, (0.0, 0))
            self.sums[p] = total + gram, count + len(flat)

    def _factors(self, p, state):
        total, count = self.sums.pop(p)
        mean = state.setdefault("inputs", torch.zeros_like(total)).lerp_(total / count, 1 - self.section.beta)
        values, vectors = torch.linalg.eigh(mean / (1 - self.section.beta ** state["step"]))
        damped = values.clamp_min(0) + self.section.damping * values.mean()
        return ((vectors * damped.pow(-power)) @ vectors.T for power in (0.5, self.section.power))

    def direction(self, p, state, g):
        """Before this, the hooks have seen all inputs of the update."""
        inner, outer = self._factors(p, state)
        o = orthogonalise((self.momentum(state, g) @ inner).bfloat16()).float() @ outer
        return o * (math.sqrt(min(g.shape[1:])) / torch.linalg.matrix_norm(o, keepdim=True))
