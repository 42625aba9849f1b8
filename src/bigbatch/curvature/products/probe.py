r"""Whether products are right, by another way than second derivatives: once per operator, on few samples, in float64.

Hessian:       H v   against  (g(w + h v) - g(w - h v)) / 2h,  g the gradient
Gauss-Newton:  G v   against  J^T d, d the same difference of dl/dz along J v, and J v that of the outputs z

Only first derivatives are taken for the reference, so a rule of second derivatives that is wrong, or missing and taken for zero, shows. At
the kinks of ReLU and max-pooling a difference can be off; h is so small that few units are near one, and three directions must all fail.
A difference of gradients that is no small part of the gradient says nothing: units that were off came on, as in a net that diverged.
Where the model can't run in float64, u^T A v = v^T A u is looked at instead.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import arguments, map_tensors, tensors_of
from bigbatch.curvature.products.fixed_batches import Piece, cut_samples
from bigbatch.curvature.products.preserve_state import drawing_from
from bigbatch.curvature.second_derivatives.replaced_layers import FastSecondDerivatives

SAMPLES = 8
STEPS = (1e-7, 1e-8, 1e-8)
"""h of each try, for vectors as long as the weights; rounding makes up to 1e-8 of the gradient's length."""
TOLERANCE, FLOOR = 1e-3, 1e-6
"""Largest difference, of the product's length and of the gradient's."""
SMALL = 0.01
"""Of the gradient's length: how much it may change within a step that derivatives are to describe."""

Product = Callable[["Evaluation", list[Tensor]], list[Tensor]]
"""The product that is under test, by the graph of an evaluation."""


class Evaluation(NamedTuple):
    """Of few samples, with its graph."""

    weights: list[Tensor]
    outputs: Any
    loss: Tensor  # scalar


class Evaluator:
    """A model and a loss on few samples, in float64, at any weights.

    Args:
        model: In the mode that products are taken in.
        loss: Of outputs and targets.
        piece: Samples; the first few count.
        weights: Of the model, by name.
        chosen: Names of those that products are taken for.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], piece: Piece, weights: dict[str, Tensor], chosen: Sequence[str]
    ) -> None:
        self._model, self._loss, self.chosen, self._number = model, loss, list(chosen), piece.number
        can_be_cut = all(t.dim() and len(t) == piece.samples for t in tensors_of((piece.inputs, piece.targets)))
        few = slice(0, min(SAMPLES, piece.samples)) if can_be_cut else slice(None)
        inputs, self._targets = _wide(cut_samples(piece.inputs, few)), _wide(cut_samples(piece.targets, few))
        self._args, self._kwargs = arguments(inputs)
        self._weights = {name: _wide(w.detach()) for name, w in weights.items()}
        self.at = [self._weights[name] for name in self.chosen]

    def __call__(self, step: Sequence[Tensor] | None = None, h: float = 0.0) -> Evaluation:
        """At the weights, or h times a step from them."""
        moved = [w.clone() if step is None else w + h * s for w, s in zip(self.at, step or self.at, strict=True)]
        for w in moved:
            w.requires_grad_()
        buffers = {name: _wide(buffer.detach().clone()) for name, buffer in self._model.named_buffers()}
        with drawing_from(self._number, self._model), FastSecondDerivatives():
            outputs = functional_call(
                self._model, {**self._weights, **buffers, **dict(zip(self.chosen, moved, strict=True))}, self._args, self._kwargs
            )
            value = self._loss(outputs, self._targets)
        return Evaluation(moved, outputs, value.mean())


def hessian_by_difference(at: Evaluator, v: list[Tensor], h: float) -> list[Tensor]:
    """H v from gradients alone."""
    after, before = (gradient_of(e.loss, e.weights) for e in (at(v, h), at(v, -h)))
    return [(a - b) / (2 * h) for a, b in zip(after, before, strict=True)]


def gauss_newton_by_difference(at: Evaluator, v: list[Tensor], h: float) -> list[Tensor]:
    """J^T H J v from first derivatives alone."""
    Jv = (at(v, h).outputs.detach() - at(v, -h).outputs.detach()) / (2 * h)
    here, slopes = at(), []
    for sign in (1, -1):
        z = (here.outputs.detach() + sign * h * Jv).requires_grad_()
        slopes += gradient_of(at._loss(z, at._targets).mean(), [z])
    return gradient_of(here.outputs, here.weights, (slopes[0] - slopes[1]) / (2 * h))


def check_products(at: Evaluator, product: Product, by_difference: Callable[[Evaluator, list[Tensor], float], list[Tensor]]) -> None:
    """Compare products with differences of first derivatives.

    Args:
        at: The model on few samples.
        product: Under test.
        by_difference: Its reference.

    Raises:
        UserError: If they differ in all tries, naming the parameter where they differ most.
    """
    generator = torch.Generator().manual_seed(0)
    worst: tuple[float, str] = (0.0, "")
    for h in STEPS:
        v = [
            torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device) * w.detach().square().mean().sqrt().clamp_min(1e-3)
            for w in at.at
        ]
        here = at()
        slope = _length(gradient_of(here.loss, here.weights))
        got, true = product(at(), v), by_difference(at, v, h)
        gaps = [a - b for a, b in zip(got, true, strict=True)]
        scale = _length(got) + _length(true)
        gap = _length(gaps)
        if not gap > TOLERANCE * scale + FLOOR * slope:  # not finite: left to the measurement itself
            return
        if 2 * h * _length(true) > SMALL * slope:
            return
        each = [
            (float(g.norm() / (a.norm() + b.norm()).clamp_min(1e-30)), float(g.norm()), name)
            for g, a, b, name in zip(gaps, got, true, at.chosen, strict=True)
        ]
        worst = (gap / scale, max(each, key=lambda part: part[1])[2])
    raise _wrong(at, f"differs by {100 * worst[0]:.2g} % from differences of gradients", worst[1])


def check_symmetry(times: Callable[[list[Tensor]], list[Tensor | None]], weights: Sequence[Tensor]) -> None:
    """Compare u^T A v and v^T A u.

    Raises:
        UserError: If they differ by more than rounding makes.
    """
    generator = torch.Generator().manual_seed(0)
    u, v = ([torch.randn(w.shape, generator=generator).to(w) for w in weights] for _ in range(2))
    Au, Av = times(u), times(v)
    gap = abs(_dot(u, Av) - _dot(v, Au))
    if gap > 0.01 * (_length(u) * _length(Av) + _length(v) * _length(Au)) / len(u) ** 0.5:
        raise UserError(f"products: u'Av and v'Au differ by {gap:.3g}: {_BLAME}")


def gradient_of(value: Tensor, weights: Sequence[Tensor], towards: Tensor | None = None) -> list[Tensor]:
    """The gradient, with zeros where there is none."""
    grads = torch.autograd.grad(value, list(weights), towards, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]


_BLAME = "an operation of the model or the loss has a wrong second derivative, or none that torch knows of"


def _wrong(at: Evaluator, how: str, name: str) -> UserError:
    owner, kind = name.rpartition(".")[0], ""
    with suppress(AttributeError):
        kind = f", a {type(at._model.get_submodule(owner)).__name__}"
    return UserError(
        f"second derivative: {how}, most at parameter {name!r} (of {owner or 'the model itself'}{kind}): {_BLAME}; exchange what follows "
        "that parameter, such as a custom autograd function, for plain operations, and turn activation checkpointing off"
    )


def _wide(value: Any) -> Any:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, value)


def _length(parts: Sequence[Tensor | None]) -> float:
    return float(torch.stack([p.double().square().sum() for p in parts if p is not None] or [torch.zeros(())]).sum().sqrt())


def _dot(a: Sequence[Tensor], b: Sequence[Tensor | None]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True) if y is not None)
