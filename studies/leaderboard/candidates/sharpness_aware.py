"""Each micro-batch's gradient taken uphill of the weights, at the sharpest point near them as that micro-batch sees it.

Source: Foret et al. 2021, Sharpness-Aware Minimization, arXiv:2010.01412, Sections 2 and 4.1 (m-sharpness); for large batches Liu et al.
        2022, LookSAM, arXiv:2203.02714.
Rule:   g = mean over micro-batches i of `sharp` samples of   grad L_i(w + rho grad L_i(w) / |grad L_i(w)|);   then Muon's step.
Cost:   two passes of each sample; the micro-batches are there anyway.
"""

from typing import Literal

import torch
from plain_muon import PlainMuon
from torch.func import functional_call

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection

CHOICES = (
    {},
    {"optimizer.rho": 0.02},
    {"optimizer.rho": 0.1},
    {"optimizer.rho": 0.2},
    {"optimizer.rho": 0.1, "batch.micro_batch": 512},
)


class SharpnessAwareSection(MuonSection):
    """In a recipe."""

    name: Literal["sharpness_aware"] = "sharpness_aware"
    rho: float = 0.05


def recipe(planned):
    """The Muon rule's plan with this optimizer, in micro-batches of the reference's batch."""
    return planned.replace({"optimizer.name": "sharpness_aware", "batch.micro_batch": planned.batch.ghost_batch or 128})


@OPTIMIZERS.register("sharpness_aware", SharpnessAwareSection)
def build(section, model, _):
    """For a recipe."""
    return PlainMuon(model, section)


def task(plain, recipe):
    """The task, its losses taken uphill in training."""

    class Uphill(type(plain)):
        rho = recipe.optimizer.rho

        def outputs(self, model, inputs):
            self.last = model, inputs
            return model(inputs)

        def losses(self, outputs, targets):
            losses = super().losses(outputs, targets)
            model, inputs = self.last
            if not (model.training and losses.requires_grad):
                return losses
            weights = dict(model.named_parameters())
            slopes = torch.autograd.grad(losses.mean(), list(weights.values()))
            norm = torch.linalg.vector_norm(torch.stack([s.float().norm() for s in slopes]))
            uphill = {name: w + (self.rho / norm) * s for (name, w), s in zip(weights.items(), slopes, strict=True)}
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                return super().losses(functional_call(model, uphill, (inputs,)), targets)

    plain.__class__ = Uphill
    return plain
