"""SOAP before Muon, its moments those of the micro-batches' gradients in place of their mean: the noise of the gradient, not only its size.

Source: this project's own combination: the empirical Fisher of micro-batches is nearer to the curvature than the square of the mean.
Rule:   as soap_tried.py, but L, R and V are means over the micro-batches i of this and of the last updates, of g_i g_i', g_i' g_i and
        (Q_L' g_i Q_R)^2, in the basis of the update before
"""

from typing import Literal

import torch
from micro_gradients import MicroMuon
from plain_muon import to_convergence, turned

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = (
    {},
    {"optimizer.beta2": 0.5},
    {"optimizer.beta2": 0.95},
    {"batch.micro_batch": 512},
    {"optimizer.lr *": 1.4},
)


class MicroSoapSection(MuonSection):
    """In a recipe."""

    name: Literal["micro_soap"] = "micro_soap"
    beta2: float = 0.8
    longest: int = 2048


def recipe(planned):
    """The Muon rule's plan with this optimizer, in micro-batches of twice the reference's batch."""
    return planned.replace(
        {"optimizer.name": "micro_soap", "batch.micro_batch": planned.batch.ghost_batch or planned.batch.global_batch // 32}
    )


@OPTIMIZERS.register("micro_soap", MicroSoapSection)
def build(section, model, _):
    """For a recipe."""
    return MicroSoap(model, section)


class MicroSoap(MicroMuon):
    """See above."""

    def add(self, p, g):
        """Moments of a micro-batch."""
        sums, state = self.sums.setdefault(p, {}), self.state[p]
        for name, value in (("left", lambda: g @ g.mT), ("right", lambda: g.mT @ g), ("second", lambda: turned(state, g).square())):
            side = {"left": -2, "right": -1}.get(name)
            if side is None or g.size(side) <= self.section.longest:
                sums[name] = sums.get(name, 0) + value()
        sums["count"] = sums.get("count", 0) + 1

    def direction(self, p, state, g):
        """An orthogonal matrix for each of the gradients."""
        beta, sums = self.section.beta2, self.sums[p]
        if state["step"] == 1:
            sums["second"] = None
        for name in ("left", "right"):
            if name not in sums:
                continue
            mean = state.setdefault(name, torch.zeros_like(sums[name])).lerp_(sums[name], 1 - beta)
            basis = state.get(f"{name}_basis")
            state[f"{name}_next"] = torch.linalg.eigh(mean)[1].flip(-1) if basis is None else torch.linalg.qr(mean @ basis)[0]
        z = self.momentum(state, g)
        if sums["second"] is None:  # no basis yet
            self._take_next(state)
            return to_convergence(z)
        second = state.setdefault("second", torch.zeros_like(g)).lerp_(sums["second"] * sums["count"], 1 - beta)
        second = second / (1 - beta ** (state["step"] - 1))
        scaled = turned(state, turned(state, z) / (second.sqrt() + self.section.eps), back=True)
        self._take_next(state)
        return to_convergence(scaled)

    def _take_next(self, state):
        for name in ("left", "right"):
            if f"{name}_next" in state:
                state[f"{name}_basis"] = state.pop(f"{name}_next")
