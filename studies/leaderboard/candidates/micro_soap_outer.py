"""SOAP of micro-batches before Muon within MuLoCo with one worker: micro_soap.py and outer_nesterov.py together."""

import micro_soap  # registers the optimizer

OUTER = {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3}
CHOICES = (
    {},
    {"optimizer.beta2": 0.5},
    OUTER,
    {**OUTER, "optimizer.beta2": 0.5},
    {**OUTER, "optimizer.beta2": 0.9},
    {"optimizer.beta2": 0.5, "optimizer.lr *": 1.4},
)


def recipe(planned):
    """micro_soap's recipe, wrapped."""
    return micro_soap.recipe(planned).replace({"comm": {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}})
