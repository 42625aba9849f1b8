"""SOAP before Muon within MuLoCo with one worker: soap_muon.py and outer_nesterov.py together, which are the two that helped most alone."""

CHOICES = (
    {},
    {"optimizer.lr *": 1.4},
    {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3},
    {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3, "optimizer.lr *": 1.4},
    {"comm.outer_momentum": 0.8},
    {"comm.outer_momentum": 0.8, "comm.period": 2},
)
RULE = "soap_muon"


def recipe(planned):
    """The plan of rule `soap_muon`, wrapped."""
    return planned.replace({"comm": {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}})
