"""What each micro-batch's gradient adds to moments of the update: they are there anyway, and tell the noise that their mean hides."""

import torch
from plain_muon import PlainMuon

from bigbatch.core.tensors.matrices import as_matrices


class MicroGradients:
    """Calls `add(p, g)` with the gradient of every micro-batch, as matrices (matrices, outputs, inputs); scaled as the whole update's.

    Args:
        groups: Of an optimizer built by `muon_groups`.
        add: Called during each backward pass.
    """

    def __init__(self, groups, add):
        self.add, self.before = add, {}
        for group in groups:
            if group["orthogonalise"]:
                for p in group["params"]:
                    p.register_post_accumulate_grad_hook(lambda p, lie=(group["matrices"], group["layout"]): self._seen(p, lie))

    @torch.no_grad()
    def _seen(self, p, lie):
        grad, before = p.grad.float(), self.before.get(p)
        self.add(p, as_matrices(grad if before is None else grad - before, *lie))
        self.before[p] = grad.clone()

    def clear(self):
        """The update is over."""
        self.before.clear()


class MicroMuon(PlainMuon):
    """Muon whose subclass adds up moments in `self.sums`, of each parameter, by `add(p, g)` with the gradient of every micro-batch."""

    def __init__(self, model, section):
        super().__init__(model, section)
        self.sums = {}
        self.micro = MicroGradients(self.param_groups, self.add)

    @torch.no_grad()
    def step(self, closure=None):
        """One update."""
        super().step(closure)
        self.sums.clear()
        self.micro.clear()
