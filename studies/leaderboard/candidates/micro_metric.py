"""Muon in the metric of the gradient's noise: Shampoo's two factors, from the gradients of the micro-batches.

Source: Shampoo (Gupta et al. 2018, arXiv:1802.09568) with the micro-batches' gradients, so that its factors are an empirical Fisher's, as
        K-FAC's are; orthogonalised within, as whitened_inputs.py.
Rule:   L <- mean of g_i g_i', R <- mean of g_i' g_i over the micro-batches of this and of the last updates, each damped by `damping`
        times its mean eigenvalue;   O = L^-p UV' of (L^-p Z R^-p) R^-p, of Muon's norm, p = `power`
"""

import math
from typing import Literal

import torch
from micro_gradients import MicroMuon

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.muon.muon_section import MuonSection
from bigbatch.optim.muon.newton_schulz import orthogonalise

CHOICES = (
    {},
    {"optimizer.damping": 1.0},
    {"optimizer.damping": 0.01},
    {"optimizer.power": 0.5},
    {"optimizer.lr *": 1.4},
)


class MicroMetricSection(MuonSection):
    """In a recipe."""

    name: Literal["micro_metric"] = "micro_metric"
    beta2: float = 0.8
    damping: float = 0.1
    power: float = 0.25


def recipe(planned):
    """The Muon rule's plan with this optimizer, in micro-batches of twice the reference's batch."""
    return planned.replace(
        {"optimizer.name": "micro_metric", "batch.micro_batch": planned.batch.ghost_batch or planned.batch.global_batch // 32}
    )


@OPTIMIZERS.register("micro_metric", MicroMetricSection)
def build(section, model, _):
    """For a recipe."""
    return MicroMetric(model, section)


class MicroMetric(MicroMuon):
    """See above."""

    def add(self, p, g):
        """Moments of a micro-batch."""
        left, right = self.sums.get(p, (0, 0))
        self.sums[p] = left + g @ g.mT, right + g.mT @ g

    def direction(self, p, state, g):
        """An orthogonal matrix for each of the gradients."""
        left, right = (self._power(state, name, gram) for name, gram in zip(("left", "right"), self.sums[p], strict=True))
        o = left @ orthogonalise((left @ self.momentum(state, g) @ right).bfloat16()).float() @ right
        return o * (math.sqrt(min(g.shape[1:])) / torch.linalg.matrix_norm(o, keepdim=True))

    def _power(self, state, name, gram):
        mean = state.setdefault(name, torch.zeros_like(gram)).lerp_(gram, 1 - self.section.beta2)
        values, vectors = torch.linalg.eigh(mean)
        damped = values.clamp_min(0) + self.section.damping * values.mean(-1, keepdim=True)
        return (vectors * damped.pow(-self.section.power).unsqueeze(-2)) @ vectors.mT
