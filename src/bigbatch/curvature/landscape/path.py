r"""Loss and scores along a path between two sets of weights, and beyond its ends.

Paper:   Keskar et al. 2016, On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima, arXiv:1609.04836,
         Section 2.2.1 (parametric plots).
Formula: straight  x(a) = (1 - a) x_S + a x_L,    arc  x(a) = cos(a pi / 2) x_S + sin(a pi / 2) x_L,    a from -1 to 2 in 25 points
Units:   none for a: 0 is the start, 1 the end.
Differs: batch norms' running statistics belong to no point between two models, so they can be computed anew at each (`prepare`), the ends
         among them. Without that they go straight from one end's to the other's and stay there beyond, where a straight line would
         make variances negative; at the ends all is then exactly as in the states. Whole numbers and what is no tensor are those of
         the nearer end.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.curvature.products.evaluated import Loss
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.preserve_state import copied, preserve_state

PAPER = Paper(
    method="Parametric plots",
    title="On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima",
    authors="Keskar et al.",
    year=2016,
    arxiv="1609.04836",
    where="Section 2.2.1",
    study="studies/sharpness",
)

State = Mapping[str, Any]
FROM, TO = -1.0, 2.0


class Shares(NamedTuple):
    """What a point has of either end."""

    start: float
    end: float


def shares(a: float, bend: Literal["arc"] | None = None) -> Shares:
    """Coefficients of the two ends at a; exactly 1 and 0 at the start, 0 and 1 at the end.

    >>> shares(0.25), shares(1.0, "arc")
    (Shares(start=0.75, end=0.25), Shares(start=0.0, end=1.0))
    """
    if bend is None:
        return Shares(1 - a, a)
    return Shares(float(a == 0), float(a == 1)) if a in (0, 1) else Shares(math.cos(a * math.pi / 2), math.sin(a * math.pi / 2))


def mixed(start: Tensor, end: Tensor, of: Shares) -> Tensor:
    """The point between two tensors of floating-point numbers, summed in float64, of the first's dtype; an end bit for bit.

    >>> import torch
    >>> mixed(torch.tensor([1.0]), torch.tensor([3.0]), Shares(0.5, 0.5))
    tensor([2.])
    """
    if of in ((1, 0), (0, 1)):
        return (start if of.start else end).to(start.dtype)
    return (of.start * start.double() + of.end * end.to(start.device).double()).to(start.dtype)


class Path(NamedTuple):
    """Means over all samples at each point."""

    alphas: tuple[float, ...]  # a
    losses: tuple[float, ...]
    scores: tuple[float, ...] | None  # None, if there was nothing to score by


def path(
    model: nn.Module,
    start_state: State,
    end_state: State,
    loss: Loss,
    batches: Iterable[tuple[Any, Any]],
    *,
    scores: Loss | None = None,
    points: int | Sequence[float] = 25,
    bend: Literal["arc"] | None = None,
    prepare: Callable[[nn.Module], object] | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Loss and scores along the path from one state of a model to another, in evaluation mode.

    The model is copied: its weights, buffers, gradients and mode, and all random states, are left as found.

    Args:
        model: That both states are of; its own state does not matter.
        start_state: As of `model.state_dict()`.
        end_state: Likewise.
        loss: Takes outputs and targets of n samples and gives their n losses, or the mean of them.
        batches: Pairs of inputs and targets; the same at each pass.
        scores: As the loss, what else is to be averaged, such as 1 for a right answer and 0 for a wrong one.
        points: Values of a, or how many of them, evenly from -1 to 2.
        bend: "arc" for the curved path; straight, if None.
        prepare: Is given a copy of the model at each point, to be changed in place: computes the statistics of batch norms anew.
        micro_batch: Most samples in a forward pass.
        progress: Is told the points done and how many there are, after each.

    Raises:
        UserError: If the states are not of one model, there are no points, or the model, loss or batches can't be used; see `Hessian`.
    """
    where = np.linspace(FROM, TO, max(points, 0)).tolist() if isinstance(points, int) else [float(a) for a in points]
    if not where or not all(math.isfinite(a) for a in where):
        raise UserError(f"points = {points}: must be one at least, all of them finite; the paper's are 25 from -1 to 2")
    if bend not in (None, "arc"):
        raise UserError(f'bend = {bend!r}: must be "arc" or None, for the straight path; choose one of them')
    own = copied(Hessian(model, loss, batches, parameters=model.parameters()).model)
    for name, state in (("start_state", start_state), ("end_state", end_state)):
        _check(name, state, own.state_dict())
    weights = {name for name, _ in own.named_parameters(remove_duplicate=False)}
    data = Hessian(own, loss, batches, parameters=own.parameters(), micro_batch=micro_batch, memory_bytes=0)
    losses, scored = [], []
    with preserve_state(model):
        for i, a in enumerate(where, 1):
            ends = ((name, start_state[name], end_state[name]) for name in start_state)
            own.load_state_dict({name: _point(a, *both, weight=name in weights, bend=bend) for name, *both in ends})
            if prepare is not None:
                prepare(own)
            at = data.loss_and_score(scores)
            losses.append(at[0])
            scored.append(at[1])
            if progress is not None:
                progress(i, len(where))
    return Path(tuple(where), tuple(losses), None if scores is None else tuple(scored))


def _point(a: float, start: Any, end: Any, *, weight: bool, bend: Literal["arc"] | None) -> Any:
    """One entry of a state at a."""
    if not (isinstance(start, Tensor) and start.is_floating_point()):
        return start if a < 0.5 else end
    return mixed(start, end, shares(a, bend) if weight else shares(min(max(a, 0.0), 1.0)))


def _check(name: str, state: State, expected: State) -> None:
    for what, odd in (("lacks", expected.keys() - state.keys()), ("has what the model has not,", state.keys() - expected.keys())):
        if odd:
            raise UserError(f"{name}: {what} {', '.join(sorted(odd)[:3])}; give two states of this very model, as of model.state_dict()")
    for key, value in expected.items():
        if isinstance(value, Tensor) and (found := getattr(state[key], "shape", None)) != value.shape:
            raise UserError(f"{name}: {key} is of shape {found}, and in the model {tuple(value.shape)}; give two states of this very model")
