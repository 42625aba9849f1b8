"""SOAP before Muon, its moments those of the micro-batches' gradients in place of their mean: the noise of the gradient, not only its size.

Source: this project's own combination: the empirical Fisher of micro-batches is nearer to the curvature than the square of the mean.
Rule:   as soap_tried.py, but L, R and V are means over the micro-batches i of this and of the last updates, of g_i g_i', g_i' g_i and
        (Q_L' g_i Q_R)^2, in the basis of the update before
"""

from typing import Literal

import torch
from micro_gradients import MicroGradients
from plain_muon import PlainMuon, to_convergence

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon_section import MuonSection

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


class MicroSoap(PlainMuon):
    """See above."""

    def __init__(self, model, section):
        super().__init__(model, section)
        self.sums = {}
        self.micro = MicroGradients(self.param_groups, self._add)

    def _add(self, p, g):
        sums, state = self.sums.setdefault(p, {}), self.state[p]
        for name, value in (("left", lambda: g @ g.mT), ("right", lambda: g.mT @ g), ("second", lambda: self._turn(state, g).square())):
            side = {"left": -2, "right": -1}.get(name)
            if side is None or g.size(side) <= self.section.longest:
                sums[name] = sums.get(name, 0) + value()
        sums["count"] = sums.get("count", 0) + 1

    @torch.no_grad()
    def step(self, closure=None):
        """One update."""
        super().step(closure)
        self.sums.clear()
        self.micro.clear()

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
        scaled = self._turn(state, self._turn(state, z) / (second.sqrt() + self.section.eps), back=True)
        self._take_next(state)
        return to_convergence(scaled)

    def _take_next(self, state):
        for name in ("left", "right"):
            if f"{name}_next" in state:
                state[f"{name}_basis"] = state.pop(f"{name}_next")

    def _turn(self, state, x, back=False):
        left, right = state.get("left_basis"), state.get("right_basis")
        if left is not None:
            x = (left if back else left.mT) @ x
        if right is not None:
            x = x @ (right.mT if back else right)
        return x
