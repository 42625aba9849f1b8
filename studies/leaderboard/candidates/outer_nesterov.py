"""MuLoCo with one worker: Nesterov's momentum over the displacement of every few updates.

Source: Thérien et al. 2025, MuLoCo, arXiv:2505.23725; "MuLoCo wrap" in the step-count records of modded-nanogpt, track 3 (2026).
Rule:   every `period` updates:   D = w_ref - w,   v <- mu v + D,   w_ref <- w_ref - outer_lr (D + mu v)
"""

CHOICES = (
    {},
    {"comm.period": 9},
    {"comm.outer_momentum": 0.3},
    {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.3},
    {"comm.outer_lr": 0.7, "comm.outer_momentum": 0.6, "optimizer.lr *": 1.4},
)


def recipe(planned):
    """The Muon rule's plan, wrapped."""
    return planned.replace({"comm": {"kind": "muloco", "period": 3, "outer_lr": 0.7, "outer_momentum": 0.6}})
