"""EMA-Nesterov: gradients are taken ahead of the weights, along the line from their running mean.

Source: the step-count records of modded-nanogpt, track 3 (2026).
Rule:   M <- mean of w over a tenth of the run;   gradients at w + c (w - M),   c = `ahead` eta / eta_max from 10 to 70 % of the run, else 0
"""

from typing import Literal

import torch
from plain_muon import PlainMuon

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = (
    {},
    {"optimizer.ahead": 0.15},
    {"optimizer.ahead": 0.6},
    {"optimizer.ahead": 0.6, "optimizer.horizon": 0.2},
    {"optimizer.ahead": -0.3},
)


class EMANesterovSection(MuonSection):
    """In a recipe."""

    name: Literal["ema_nesterov"] = "ema_nesterov"
    num_updates: int
    ahead: float = 0.3
    horizon: float = 0.1  # share of the run over which the mean goes
    begin: float = 0.1
    end: float = 0.7


def recipe(planned):
    """The Muon rule's plan with this optimizer."""
    return planned.replace({"optimizer.name": "ema_nesterov", "optimizer.num_updates": planned.num_updates})


@OPTIMIZERS.register("ema_nesterov", EMANesterovSection)
def build(section, model, _):
    """For a recipe."""
    return EMANesterov(model, section)


class EMANesterov(PlainMuon):
    """See above."""

    def __init__(self, model, section):
        super().__init__(model, section)
        self.done = 0

    @torch.no_grad()
    def step(self, closure=None):
        """One update."""
        c, params = self.section, [p for group in self.param_groups for p in group["params"]]
        for p in params:
            if (held := self.state[p].get("held")) is not None:
                p.copy_(held)
        super().step(closure)
        self.done += 1
        keep = 1 - 1 / max(c.horizon * c.num_updates, 1)
        for p in params:
            mean = self.state[p].setdefault("mean", p.clone()).lerp_(p, 1 - keep)
            self.state[p]["held"] = p.clone()
            if c.begin <= self.done / c.num_updates < c.end:
                lr = self.param_groups[0]["lr"] / c.lr
                p.add_(p - mean, alpha=c.ahead * lr)
