"""soap_outer.py with other momenta, inside and outside, and rates of the head."""

OUTER = {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3}
CHOICES = (
    {"optimizer.momentum": 0.7},
    {"optimizer.momentum": 0.7, **OUTER},
    {"optimizer.momentum": 0.5, **OUTER},
    {"optimizer.adam_lr *": 2.0, **OUTER},
    {"optimizer.adam_lr *": 0.5, **OUTER},
    {"optimizer.weight_decay *": 0.5, **OUTER},
    {"optimizer.momentum": 0.7, "optimizer.lr *": 1.4, "optimizer.beta2": 0.8},
    {"comm.period": 5},
)
RULE = "soap_muon"


def recipe(planned):
    """The plan of rule `soap_muon`, wrapped."""
    return planned.replace({"comm": {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}})
