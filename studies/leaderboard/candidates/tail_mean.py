"""The mean of the last weights as readout, at rates that need it.

Source: the final readout 0.4 w + 0.6 EMA in the step-count records of modded-nanogpt, track 3 (2026).
Rule:   M <- mean of w over the last `horizon` of the run;   at the end w <- (1 - share) w + share M
"""

from typing import Literal

import torch
from plain_muon import PlainMuon

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = (
    {},
    {"optimizer.lr *": 1.5},
    {"optimizer.horizon": 0.1},
    {"schedule.decay.final_factor": 0.2},
    {"schedule.decay.final_factor": 0.2, "optimizer.horizon": 0.1},
    {"optimizer.share": 1.0, "schedule.decay.final_factor": 0.2},
)


class TailMeanSection(MuonSection):
    """In a recipe."""

    name: Literal["tail_mean"] = "tail_mean"
    num_updates: int
    share: float = 0.6
    horizon: float = 0.05


def recipe(planned):
    """The Muon rule's plan with this optimizer."""
    return planned.replace({"optimizer.name": "tail_mean", "optimizer.num_updates": planned.num_updates})


@OPTIMIZERS.register("tail_mean", TailMeanSection)
def build(section, model, _):
    """For a recipe."""
    return TailMean(model, section)


class TailMean(PlainMuon):
    """See above."""

    def __init__(self, model, section):
        super().__init__(model, section)
        self.done = 0

    @torch.no_grad()
    def step(self, closure=None):
        """One update."""
        super().step(closure)
        self.done += 1
        c = self.section
        for p in (p for group in self.param_groups for p in group["params"]):
            mean = self.state[p].setdefault("mean", p.clone()).lerp_(p, 1 / max(c.horizon * c.num_updates, 1))
            if self.done == c.num_updates:
                p.lerp_(mean, c.share)
