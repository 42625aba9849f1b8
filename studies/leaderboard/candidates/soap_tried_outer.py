"""SOAP before Muon as in soap_tried.py, orthogonalised to convergence, within MuLoCo with one worker."""

import soap_tried  # registers the optimizer

OUTER = {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3}
STEEP = {"optimizer.lr *": 1.4, "optimizer.start": "identity"}
CHOICES = (
    {"optimizer.beta2": 0.8},
    {"optimizer.beta2": 0.8, **OUTER},
    {"optimizer.beta2": 0.7, **OUTER},
    {"optimizer.beta2": 0.8, **STEEP, **OUTER},
    {"optimizer.beta2": 0.8, **STEEP, "optimizer.raw_inputs": False, **OUTER},
    {**STEEP, "optimizer.raw_inputs": False, **OUTER},
)


def recipe(planned):
    """soap_tried's recipe, wrapped."""
    return soap_tried.recipe(planned).replace({"comm": {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}})
