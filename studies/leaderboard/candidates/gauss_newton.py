"""The whole Gauss-Newton matrix, by conjugate gradients: a bound on what curvature can do for one update, at many serial passes.

Source: Martens 2010, Deep learning via Hessian-free optimization, Sections 4.1 to 4.4; the bound by it: arXiv:2510.09378.
Rule:   d: (G + lambda I) d = g by `cg` steps from 0.95 times the last d;   w <- w - eta d;   lambda by Levenberg and Marquardt: times 2/3
        where the loss of the batch fell by more than 3/4 of what the quadratic model said, times 3/2 where by less than 1/4
G is of every `every`-th micro-batch of the update, the gradient of all.
"""

from typing import Literal

import torch
from torch.optim import Optimizer

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.curvature import GaussNewton
from bigbatch.recipe.sections import UniformDecay
from bigbatch.tasks.optional_parts import outputs_of

CHOICES = ({}, {"optimizer.damping": 0.1}, {"optimizer.damping": 10.0}, {"optimizer.cg": 30})


class GaussNewtonSection(UniformDecay):
    """In a recipe; the rate is a factor of the whole step."""

    name: Literal["gauss_newton"] = "gauss_newton"
    damping: float = 1.0  # lambda at the beginning
    cg: int = 10
    every: int = 4


def recipe(planned):
    """Whole steps, then smaller ones: the samples, batch and schedule of the Muon rule's plan, in float32."""
    own = {"name": "gauss_newton", "lr": 1.0}
    return planned.replace({"optimizer": own, "precision": "float32", "batch.micro_batch": 512})


@OPTIMIZERS.register("gauss_newton", GaussNewtonSection)
def build(section, model, _):
    """For a recipe whose task is that of `task`, below."""
    return GaussNewtonSteps(model, section)


SEEN = []
"""Task, inputs and targets of the micro-batches of this update."""


def task(plain, _):
    """The task, its micro-batches in training remembered until the step."""

    class Watched(type(plain)):
        def outputs(self, model, inputs):
            self.last = inputs if model.training else None
            return outputs_of(plain_again, model, inputs)

        def losses(self, outputs, targets):
            losses = super().losses(outputs, targets)
            if self.last is not None and losses.requires_grad:
                SEEN.append((plain_again, self.last, targets))
            return losses

    plain_again = type(plain).__new__(type(plain))
    plain_again.__dict__.update(plain.__dict__)
    plain.__class__ = Watched
    return plain


class GaussNewtonSteps(Optimizer):
    """See above."""

    def __init__(self, model, section):
        self.model, self.section, self.damping, self.passes = model, section, section.damping, 0
        self.last = None
        super().__init__(model.parameters(), {"lr": section.lr})

    def step(self, closure=None):
        """One update by what `SEEN` holds."""
        assert closure is None
        params = list(self.model.parameters())
        batches = [(inputs, targets) for _, inputs, targets in SEEN]
        loss = SEEN[0][0].losses
        g = torch.cat([p.grad.flatten() for p in params])
        curvature = GaussNewton(self.model, loss, batches[:: self.section.every], training=True)
        start = torch.zeros_like(g) if self.last is None else 0.95 * self.last
        d = self.last = conjugate_gradients(lambda v: curvature(v) + self.damping * v, g, start, steps=self.section.cg)
        said = float(g @ d - 0.5 * d @ (curvature(d) + self.damping * d))
        before = self._loss(loss, batches)
        lr = self.param_groups[0]["lr"]
        self._move(params, d, -1.0)
        whole = self._loss(loss, batches)
        self._move(params, d, 1.0 - lr)
        ratio = (before - whole) / max(said, 1e-12)
        self.damping *= 2 / 3 if ratio > 0.75 else 3 / 2 if not ratio > 0.25 else 1.0
        self.passes += self.section.cg + 2
        SEEN.clear()

    @torch.no_grad()
    def _loss(self, loss, batches):
        sums = [loss(self.model(inputs), targets).sum() for inputs, targets in batches]
        return float(sum(sums) / sum(len(targets) for _, targets in batches))

    @torch.no_grad()
    def _move(self, params, d, factor):
        for p, part in zip(params, torch.split(d, [p.numel() for p in params]), strict=True):
            p.add_(part.view_as(p), alpha=factor)


def conjugate_gradients(times, g, x, *, steps):
    """So many steps from x towards the solution of `times(x) = g`."""
    residual = g - times(x)
    direction, square = residual.clone(), residual @ residual
    for _ in range(steps):
        product = times(direction)
        length = square / (direction @ product)
        x = x + length * direction
        residual = residual - length * product
        square, old = residual @ residual, square
        direction = residual + (square / old) * direction
    return x
