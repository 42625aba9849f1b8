r"""Concurrent adversarial learning (ConAdv): adversarial examples from weights a few updates old, so that others can make them meanwhile.

Paper:   Liu, Chen, Cheng, Hsieh, You 2022, Concurrent Adversarial Learning for Large-Batch Training, arXiv:2106.00221, Algorithm 1.
Formula: worker k of W, update t, clean batch B_t and its twin A_t = { x + eps sign(grad_x loss(theta_{t - tau}; x, y)) : (x, y) in B_t }:
             L_k = c mean_{B_t} loss(theta_t; main batch norms) + a mean_{A_t} loss(theta_t; auxiliary batch norms)
             meanwhile, from theta_t: A_{t + tau}
             theta_{t+1} = step(theta_t, mean_k grad L_k)
         tau = 1 is the paper's choice; tau = 0 is DisAdv, the sequential control: each update waits for its own examples.
         Weights: "sum" c = 1, a = s, the paper's with s = 1 (LARS's step hardly sees the length of a gradient, SGD's does);
                  "mean" c = 1 / (1 + s), a = s / (1 + s): the mean of the two, which keeps the rate's meaning.
Units:   tau in updates; the share s in [0, 1] of the clean loss's weight.
Differs: the first tau updates have no weights tau updates old: their examples are made from the first ones, theta_max(t - tau, 0).
         The share may fall to zero on the way (the paper's is constant); from then on an update costs what it costs without. Where a
         loader ends the buffer is drained, as at the paper's epochs; bigbatch's trainer reads on over the ends of epochs.
         The update passes over B_t and A_t one after the other and adds the gradients up: the same sum in half the memory.
Cost:    two training passes an update, and a third, nearly, to make the examples. Made elsewhere (makers.py) they cost the trainer nothing;
         on one device they cost what they cost with tau = 0. Concurrency buys a shorter update with more devices, never less work: where
         an update can be split over those devices instead, that is faster still.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from bigbatch.adversarial.fgsm import Attack, Batch, check_eps, fgsm_step
from bigbatch.core.checks import UserError, check_fraction
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Concurrent adversarial learning (ConAdv)",
    title="Concurrent Adversarial Learning for Large-Batch Training",
    authors="Liu et al.",
    year=2021,
    arxiv="2106.00221",
    where="Algorithm 1",
    study="studies/concurrent_adversarial",
)
Promise = Callable[[], list[Tensor]]
"""Waits for directions that were asked for: int8, one tensor of the inputs' shape for each piece."""
Maker = Callable[[list[Batch], int], Promise]
"""Begins to make directions from the weights as they are now, for the pieces of the update of that number."""


class LossWeights(NamedTuple):
    """Of the two means in an update's loss."""

    clean: float
    adversarial: float


def loss_weights(reduction: Literal["sum", "mean"], share: float) -> LossWeights:
    """C and a of the formula.

    Args:
        reduction: How the two losses go together.
        share: s, in [0, 1].

    >>> loss_weights("sum", 1.0), loss_weights("mean", 1.0), loss_weights("mean", 0.0)
    (LossWeights(clean=1.0, adversarial=1.0), LossWeights(clean=0.5, adversarial=0.5), LossWeights(clean=1.0, adversarial=0.0))
    """
    total = 1.0 + share if reduction == "mean" else 1.0
    return LossWeights(1.0 / total, share / total)


def share_at(progress: float, *, share: float = 1.0, full_until: float = 1.0, off_at: float = 1.0) -> float:
    """The share s after a part of the run: constant, then a straight line to zero, and zero from there on.

    Args:
        progress: Part of the run that is over, in [0, 1].
        share: s at the start.
        full_until: Part of the run after which it begins to fall.
        off_at: Part of the run at which it is zero; at least `full_until`.

    Raises:
        UserError: If a setting is outside [0, 1], or the end comes before the beginning.

    >>> [share_at(p, full_until=0.5) for p in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    for name, value in (("share", share), ("full_until", full_until), ("off_at", off_at)):
        check_fraction(name, value)
    if off_at < full_until:
        raise UserError(f"off_at = {off_at:g}: must not come before full_until = {full_until:g}; raise it")
    if progress <= full_until:
        return share
    return share * max(off_at - progress, 0.0) / (off_at - full_until) if off_at > full_until else 0.0


class PairedBatch(NamedTuple):
    """A piece of an update and its adversarial examples: of the very same view of the samples, however they were augmented."""

    inputs: Tensor  # (n, ...)
    targets: Tensor  # (n, ...)
    adversarial: Tensor  # as inputs


class ConAdv:
    """PairedBatch for the updates of any loop; see the module's docstring for the rule.

    Holds `tau` updates of samples, with a byte more for each value, while others make their directions, or until they are used.

    Args:
        maker: Of directions: `made_here(attack)` makes them on the spot, those of makers.py elsewhere.
        eps: Size of the step, in units of the inputs; see `check_eps`.
        low: Least value of an input.
        high: Largest value of an input.
        tau: Age of the weights that examples are made from, in updates.

    Raises:
        UserError: If `tau` is negative, or `eps` does not fit the range.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> attack = Attack(model, lambda outputs, targets: (outputs[:, 0] - targets).square())
    >>> conadv = ConAdv(made_here(attack), eps=0.1, low=0.0, high=1.0)
    >>> loader = [(torch.rand(4, 2), torch.rand(4)) for _ in range(3)]
    >>> [(twins.adversarial - twins.inputs).abs().max().item() < 0.1001 for twins in conadv.over(loader)]
    [True, True, True]
    """

    def __init__(self, maker: Maker, *, eps: float | Tensor, low: float | Tensor, high: float | Tensor, tau: int = 1) -> None:
        if tau < 0:
            raise UserError(f"tau = {tau}: weights of updates to come are not known; give 1, or 0 for DisAdv")
        check_eps(eps, low, high)
        self.maker, self.eps, self.low, self.high, self.tau = maker, eps, low, high, tau
        self.number = 0
        """Updates whose examples were asked for so far."""
        self._ahead: deque[tuple[list[Batch], Promise]] = deque()

    def __len__(self) -> int:
        """Updates held."""
        return len(self._ahead)

    def next_update(self, read: Callable[[], list[Batch] | None]) -> list[PairedBatch] | None:
        """Once an update, before its passes: begins what is needed `tau` updates on, and waits for what is needed now.

        Args:
            read: The pieces of the next update that was not read yet; None where there is none, now and for good.

        Returns:
            The twins of this update, or None after the last one.
        """
        while len(self._ahead) <= self.tau and (pieces := read()) is not None:
            self._ahead.append((pieces, self.maker(pieces, self.number)))
            self.number += 1
        if not self._ahead:
            return None
        pieces, promise = self._ahead.popleft()
        step = {"eps": self.eps, "low": self.low, "high": self.high}
        return [PairedBatch(x, y, fgsm_step(x, direction, **step)) for (x, y), direction in zip(pieces, promise(), strict=True)]

    def over(self, loader: Iterable[Batch]) -> Iterator[PairedBatch]:
        """Pairs of a loader's batches, one an update; at the loader's end the buffer is drained, and an epoch leaves nothing behind."""
        batches = iter(loader)

        def read() -> list[Batch] | None:
            batch = next(batches, None)
            return None if batch is None else [(batch[0], batch[1])]

        while (twins := self.next_update(read)) is not None:
            yield twins[0]

    def state_dict(self) -> dict[str, Any]:
        """What was made and not yet used; waits for what is under way."""
        ahead = [[(x, y, direction) for (x, y), direction in zip(pieces, promise(), strict=True)] for pieces, promise in self._ahead]
        return {"number": self.number, "ahead": ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.number = state["number"]
        self._ahead.clear()
        for update in state["ahead"]:
            self._ahead.append(([(x, y) for x, y, _ in update], _kept([direction for _, _, direction in update])))


def made_here(attack: Attack) -> Maker:
    """Directions on the spot, by whoever asks: right everywhere, and concurrent nowhere."""
    return lambda pieces, number: _kept(attack.directions(pieces, number))


def _kept(directions: list[Tensor]) -> Promise:
    return lambda: directions
