r"""The fast gradient sign method: one step of every input value, all of one size, in the direction that raises the loss.

Paper:   Goodfellow, Shlens, Szegedy 2015, Explaining and Harnessing Adversarial Examples, arXiv:1412.6572, Section 4.
Formula: x~ = x + eps sign(grad_x J(theta, x, y)),    clamped to the data's range [low, high].
Units:   eps, low and high in units of x; a number, or a tensor that broadcasts over x where channels are scaled apart.
Differs: the clamp, which the paper leaves to its data. Where a gradient is zero or not a number, x stays.

The gradient is taken towards x alone: `p.grad`, running statistics and random states are left as found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Fast gradient sign method",
    title="Explaining and Harnessing Adversarial Examples",
    authors="Goodfellow, Shlens, Szegedy",
    year=2014,
    arxiv="1412.6572",
    where="Section 4",
)
Losses = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets to losses, one per sample or their sum; a mean has the same signs."""
Batch = tuple[Tensor, Tensor]
"""Inputs (n, ...) and targets (n, ...)."""


def fgsm_step(inputs: Tensor, gradient: Tensor, *, eps: float | Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Adversarial examples, of the shape and type of `inputs`.

    Args:
        inputs: x, shape (n, ...), within [low, high].
        gradient: Of the loss towards `inputs`, or only its signs; the same shape.
        eps: Size of the step; see `check_eps`.
        low: Least value that an input can have.
        high: Largest value that an input can have.

    >>> fgsm_step(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([-3, 1e-9, 0, 2]), eps=0.2, low=0.0, high=1.0)
    tensor([0.0000, 0.7000, 0.5000, 1.0000])
    """
    stepped = inputs + _like(eps, inputs) * signs(gradient).to(inputs.dtype)
    return torch.minimum(torch.maximum(stepped, _like(low, inputs)), _like(high, inputs))


def signs(gradient: Tensor) -> Tensor:
    """-1, 0 or 1 in one byte each; 0 for what is not a number."""
    return (gradient > 0).to(torch.int8) - (gradient < 0).to(torch.int8)


def check_eps(eps: float | Tensor, low: float | Tensor, high: float | Tensor) -> None:
    """Refuse a step that no input could take.

    Raises:
        UserError: Unless 0 < eps <= high - low everywhere, all of them finite.

    >>> check_eps(0.1, 0.0, 1.0)
    >>> check_eps(8, 0.0, 1.0)
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: eps = 8: must be above zero and at most the data's range, from 0 to 1; give it in units of the inputs
    """
    steps, lows, highs = (torch.as_tensor(value, dtype=torch.float64) for value in (eps, low, high))
    finite = bool(torch.isfinite(lows).all()) and bool(torch.isfinite(highs).all())
    if not (finite and bool((steps > 0).all()) and bool((steps <= (highs - lows) * (1 + 1e-6)).all())):  # rounding of a scaled range
        told, least, most = (" ".join(f"{v:g}" for v in t.flatten().tolist()) for t in (steps, lows, highs))
        raise UserError(
            f"eps = {told}: must be above zero and at most the data's range, from {least} to {most}; give it in units of the inputs"
        )


def input_gradient(
    model: nn.Module, losses: Losses, inputs: Tensor, targets: Tensor, *, state: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Gradient of the summed loss towards the inputs, of their shape.

    One forward pass, in the mode that the model is in, and the part of a backward pass that leads to the inputs: two thirds of a training
    pass's multiplications, and up to all of its time where layers are small.

    Args:
        model: Gets copies of its buffers for the pass, so that batch norms normalise as they would and remember nothing.
        losses: Per sample, or summed.
        inputs: Shape (n, ...), of floating-point numbers.
        targets: Shape (n, ...).
        state: Parameters and buffers to use instead of the model's own, by name; buffers among them may be written to.

    Raises:
        UserError: If inputs are whole numbers, which have no direction.
    """
    if not inputs.is_floating_point():
        raise UserError(f"inputs of {inputs.dtype}: have no direction to step in; perturb an embedding of them, or leave this method out")
    x = inputs.detach().requires_grad_()
    with torch.enable_grad():
        outputs = functional_call(model, dict(state_of(model) if state is None else state), (x,))
        loss = losses(outputs, targets).sum()
    return torch.autograd.grad(loss, x)[0]


def state_of(model: nn.Module, *, copied: bool = False) -> dict[str, Tensor]:
    """A model's parameters, detached, and copies of its buffers, by name.

    Args:
        model: Any module.
        copied: Whether parameters are copied too, so that they stay as they are now.
    """
    parameters = {name: p.detach().clone() if copied else p.detach() for name, p in model.named_parameters()}
    return parameters | {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


class Attack:
    """Directions of FGSM steps for the pieces of an update, from one model.

    Args:
        model: As in `input_gradient`.
        losses: As in `input_gradient`.
        within: What each pass is made within, such as the adversarial stream of split batch norms, or autocast.
        seed: What dropout draws from in these passes, with the number of the update and of the piece: whoever makes them, and whenever,
            they come out alike.

    >>> attack = Attack(nn.Linear(2, 1), lambda outputs, _: outputs)
    >>> weights = {"weight": torch.tensor([[3.0, -0.5]]), "bias": torch.zeros(1)}
    >>> attack.directions([(torch.zeros(1, 2), torch.zeros(1))], 0, state=weights)
    [tensor([[ 1, -1]], dtype=torch.int8)]
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        *,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
        seed: Sequence[int] = (0,),
    ) -> None:
        self.model, self.losses, self.within, self.seed = model, losses, within, tuple(seed)

    def directions(self, pieces: Sequence[Batch], number: int, *, state: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Signs of the gradients, one int8 tensor of the inputs' shape for each piece.

        Args:
            pieces: Inputs and targets; each is normalised by itself.
            number: Of the update that they are for.
            state: As in `input_gradient`.
        """
        made = []
        for i, (inputs, targets) in enumerate(pieces):
            seed = int(np.random.SeedSequence([*self.seed, number, i]).generate_state(1, np.uint64)[0] >> np.uint64(1))
            with _drawing_from(seed, inputs.device), self.within():
                made.append(signs(input_gradient(self.model, self.losses, inputs, targets, state=state)))
        return made


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of their own; those of the CPU and of `device` go on afterwards as if nothing had been drawn."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _like(value: float | Tensor, other: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(other)
    return torch.full((), value, dtype=other.dtype, device=other.device)  # filled there: sending a number waits for the device
