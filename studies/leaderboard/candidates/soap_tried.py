"""SOAP's preconditioning before Muon's orthogonalisation.

Source: Vyas et al. 2024, SOAP, arXiv:2409.11321; before Muon as in the step-count records of modded-nanogpt, track 3 (2026).
Rule:   L <- mean of G G', R <- mean of G' G over the last updates (beta2), Q_L and Q_R their eigenvectors by one QR step an update;
        V <- mean of (Q_L' G Q_R)^2;   Z the momentum;   Z <- Q_L (Q_L' Z Q_R / sqrt(V)) Q_R', of the norm of Z before;   O = UV' of Z
A side longer than `longest` keeps its own basis.
"""

from typing import Literal

import torch
from plain_muon import PlainMuon, to_convergence, turned

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection
from bigbatch.optim.muon.newton_schulz import orthogonalise

FINAL = {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.raw_inputs": False, "optimizer.exact": False}
CHOICES = (
    {},
    {"optimizer.beta2": 0.8},
    {"optimizer.beta2": 0.95},
    {"optimizer.lr *": 0.7},
    {"optimizer.lr *": 1.4},
    {"optimizer.longest": 256},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity"},
    {"optimizer.lr *": 1.4, "optimizer.exact": False},
    {"optimizer.lr *": 1.4, "optimizer.power": 0.5},
    {"optimizer.lr *": 1.4, "optimizer.damping": 0.5},
    {"optimizer.lr *": 1.4, "optimizer.damping": 2.0},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.weight_decay *": 3.0},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.aspect": 4},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.aspect": 1},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.longest": 256},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.raw_inputs": False},
    {"optimizer.lr *": 1.4, "optimizer.start": "identity", "optimizer.raw_inputs": False, "optimizer.damping": 0.1},
    {**FINAL, "optimizer.damping": 0.1},
    {**FINAL, "optimizer.damping": 0.5},
    {**FINAL, "optimizer.damping": 0.1, "optimizer.beta2": 0.8},
)


class SoapMuonSection(MuonSection):
    """In a recipe."""

    name: Literal["soap_tried"] = "soap_tried"
    beta2: float = 0.9
    longest: int = 2048
    start: Literal["eigenvectors", "identity"] = "eigenvectors"
    raw_inputs: bool = True  # whether the side of the inputs of the first matrix is preconditioned
    aspect: float = 1e9  # a side longer than so many times the other keeps its own basis, too
    damping: float = 0.0  # added to sqrt(V), in units of its mean
    power: float = 1.0  # of sqrt(V); 0 is Muon
    exact: bool = True  # whether it is orthogonalised to convergence, or as Muon does


def recipe(planned):
    """The Muon rule's plan with this optimizer."""
    return planned.replace({"optimizer.name": "soap_tried"})


@OPTIMIZERS.register("soap_tried", SoapMuonSection)
def build(section, model, _):
    """For a recipe."""
    return SoapMuon(model, section)


class SoapMuon(PlainMuon):
    """See above."""

    def direction(self, p, state, g):
        """An orthogonal matrix for each of the gradients."""
        beta = self.section.beta2
        for side, gram in (("left", g @ g.mT), ("right", g.mT @ g)):
            if side == "right" and not self.section.raw_inputs and p is self.param_groups[0]["params"][0]:
                continue
            if gram.size(-1) > min(self.section.longest, self.section.aspect * min(g.shape[1:])):
                continue
            mean = state.setdefault(side, torch.zeros_like(gram)).lerp_(gram, 1 - beta)
            basis = state.get(f"{side}_basis")
            if basis is None and self.section.start == "identity":
                basis = torch.eye(gram.size(-1)).expand_as(gram)
            if basis is None:
                state[f"{side}_basis"] = torch.linalg.eigh(mean)[1].flip(-1)
            else:
                state[f"{side}_basis"] = torch.linalg.qr(mean @ basis)[0]
        seen = turned(state, g)
        second = state.setdefault("second", torch.zeros_like(seen)).lerp_(seen.square(), 1 - beta) / (1 - beta ** state["step"])
        z = self.momentum(state, g)
        size = second.sqrt()
        damped = size + self.section.damping * size.mean((-2, -1), keepdim=True) + self.section.eps
        steep = turned(state, z) / damped.pow(self.section.power)
        scaled = turned(state, steep, back=True)
        return to_convergence(scaled) if self.section.exact else orthogonalise(scaled.bfloat16()).float()
