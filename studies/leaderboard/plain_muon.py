"""Muon written plainly, with a method for each part of it that candidates replace; not for use outside of this study.

One parameter after another, all state in float32, no sharded parameters. `PlainMuon` itself takes the steps of `bigbatch.optim.Muon`.
"""

import torch
from torch.optim import Optimizer

from bigbatch.core.tensors.matrices import as_matrices, from_matrices
from bigbatch.optim.muon.muon_split import muon_groups
from bigbatch.optim.muon.newton_schulz import matched_rms, orthogonalise


def to_convergence(stack, steps=12):
    """U V' of each matrix U S V' to about 1e-3, by a gentle iteration that moves no singular value above 1."""
    return orthogonalise(stack, steps=steps, coefficients=(2.0, -1.5, 0.5))


def turned(state, x, back=False):
    """Matrices x in the bases that the state has for their sides, or back from them."""
    left, right = state.get("left_basis"), state.get("right_basis")
    if left is not None:
        x = (left if back else left.mT) @ x
    if right is not None:
        x = x @ (right.mT if back else right)
    return x


class PlainMuon(Optimizer):
    """Momentum, orthogonalised; AdamW for groups that are no hidden matrices.

    Args:
        model: Split by `muon_groups`.
        section: Of the recipe: a `MuonSection` with fields of the candidate's own.
    """

    def __init__(self, model, section):
        self.section = section
        rates = {"lr": section.lr, "adam_lr": section.adam_lr, "weight_decay": section.weight_decay}
        super().__init__(muon_groups(model, **rates, overrides=section.groups), {})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                if group["orthogonalise"]:
                    self.update_matrices(group, p, state)
                else:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(self.adam_direction(state, p.grad.float()), alpha=group["lr"])

    def update_matrices(self, group, p, state):
        """Decay the matrices of a parameter, and take a step of a root mean square of 0.2 times the rate."""
        lie = group["matrices"], group["layout"]
        stack = as_matrices(p.grad.float(), *lie)
        o = from_matrices(self.direction(p, state, stack), p.shape, *lie)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(o, alpha=group["lr"] * matched_rms(*stack.shape[1:]))

    def direction(self, p, state, g):  # noqa: ARG002 for candidates
        """An orthogonal matrix for each of the gradients g, shape (matrices, outputs, inputs)."""
        return orthogonalise(self.momentum(state, g).bfloat16()).float()

    def momentum(self, state, g):
        """The mean gradient of the last updates, one step ahead if Nesterov's."""
        m = self.section.momentum
        mean = state.setdefault("momentum_buffer", torch.zeros_like(g)).lerp_(g, 1 - m)
        return g.lerp(mean, m) if self.section.nesterov else mean

    def adam_direction(self, state, g, prefix=""):
        """Adam's, of the state's entries with this prefix."""
        b1, b2 = self.section.betas
        m, v = (state.setdefault(f"{prefix}{name}", torch.zeros_like(g)) for name in ("exp_avg", "exp_avg_sq"))
        m.lerp_(g, 1 - b1)
        v.lerp_(g.square(), 1 - b2)
        return m / (1 - b1 ** state["step"]) / ((v / (1 - b2 ** state["step"])).sqrt() + self.section.eps)
