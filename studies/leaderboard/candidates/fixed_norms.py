"""Weights of a fixed norm, steps relative to it, less momentum: as airbench94 trains its filters.

Source: Jordan's airbench94_muon (2024): each filter tensor is brought to its norm before its step; momentum 0.6; rates linear to zero.
        "Hyperball" in the step-count records of modded-nanogpt, track 3 (2026), is the same for transformers.
Rule:   w <- |w_0| (w - eta |w_0| O / |O|) / |w - eta |w_0| O / |O||     of the matrices, without weight decay
"""

from typing import Literal

import torch
from plain_muon import PlainMuon

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.core.tensors.matrices import as_matrices, from_matrices
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = (
    {},
    {"optimizer.lr *": 1.5},
    {"optimizer.lr *": 0.7},
    {"optimizer.momentum": 0.6},
    {"optimizer.momentum": 0.6, "optimizer.lr *": 1.5},
    {"optimizer.gain": 2.0},
)


class FixedNormsSection(MuonSection):
    """In a recipe. The rate is relative: eta."""

    name: Literal["fixed_norms"] = "fixed_norms"
    gain: float = 1.0  # the fixed norm, in units of the initial one


def recipe(planned):
    """A relative rate of 0.2 at 54 updates, by the law of the Muon rule: a length that falls with the root of their number."""
    return planned.replace(
        {"optimizer.name": "fixed_norms", "optimizer.lr": 0.2 * (54 / planned.num_updates) ** 0.5, "optimizer.weight_decay": 0.0}
    )


@OPTIMIZERS.register("fixed_norms", FixedNormsSection)
def build(section, model, _):
    """For a recipe."""
    return FixedNorms(model, section)


class FixedNorms(PlainMuon):
    """See above."""

    def update_matrices(self, group, p, state):
        """A step along the sphere of the weight's norm."""
        lie = group["matrices"], group["layout"]
        g, w = as_matrices(p.grad.float(), *lie), as_matrices(p, *lie)
        if "norm" not in state:
            state["norm"] = self.section.gain * torch.linalg.matrix_norm(w, keepdim=True)
        o = self.direction(p, state, g)
        w = w - group["lr"] * state["norm"] * o / torch.linalg.matrix_norm(o, keepdim=True)
        p.copy_(from_matrices(w * (state["norm"] / torch.linalg.matrix_norm(w, keepdim=True)), p.shape, *lie))
