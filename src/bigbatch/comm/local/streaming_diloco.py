r"""Streaming DiLoCo: fragments of the model are exchanged at times of their own, while workers go on.

Paper:   Douillard et al. 2025, Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch, arXiv:2501.18512,
         Algorithm 2.
Formula: fragment p of F has updates t_p of its own, H apart. On worker i,
             at t_p:        Delta_i,p = theta_p - theta_i,p, whose mean over workers is sent for
             at t_p + tau:  theta_p   <- outer step along the mean, as in DiLoCo
                            theta_i,p <- alpha theta_i,p + (1 - alpha) theta_p
Units:   H (period) and tau (overlap) in updates.
Differs: fragment p of F is of modules p, p + F, p + 2 F, ... in the order of the model that have parameters of their own: the
         paper's strided pattern, over modules in place of blocks of a transformer. t_p = p H / F, rounded up. The inner state stays with
         its worker.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.optim import Optimizer

from bigbatch.comm.local.diloco import DiLoCo, displacement_of
from bigbatch.comm.local.outer import NO_BEFORE_STEP
from bigbatch.comm.model_averaging import split_like
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import UserError, check_fraction
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Streaming DiLoCo",
    title="Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch",
    authors="Douillard, Donchev, Rush, Kale, Charles, Garrett, Teston, Lacey, McIlroy, Shen, Rame, Szlam, Ranzato, Barham",
    year=2025,
    arxiv="2501.18512",
    where="Algorithm 2",
    study="studies/local",
)


def fragments_of(model: nn.Module, num_fragments: int) -> list[list[nn.Parameter]]:
    """The trainable parameters of a model in fragments, by its modules in turn; by its parameters, where it has fewer modules.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 5))
    >>> [[tuple(p.shape) for p in fragment] for fragment in fragments_of(model, 2)]
    [[(3, 2), (3,), (5, 4), (5,)], [(4, 3), (4,)]]
    """
    modules = own_parameters(model)
    if len(modules) < num_fragments:
        modules = [[p] for own in modules for p in own]
    return [[p for own in modules[i::num_fragments] for p in own] for i in range(num_fragments)]


def own_parameters(model: nn.Module) -> list[list[nn.Parameter]]:
    """The trainable parameters of each module that has some of its own; a tied one counts with the first."""
    seen: set[int] = set()
    modules = []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            modules.append(own)
    return modules


def starts(update: int, *, fragment: int, num_fragments: int, period: int) -> bool:
    """Whether the exchange of a fragment starts after an update, counted from the first local one.

    >>> [[t for t in range(1, 13) if starts(t, fragment=p, num_fragments=3, period=6)] for p in range(3)]
    [[2, 8], [4, 10], [6, 12]]
    """
    offset = -(-period * (fragment + 1) // num_fragments)
    return update >= offset and (update - offset) % period == 0


def mixed(own: Tensor, outer: Tensor, alpha: float) -> Tensor:
    """A worker's weights after an outer step: alpha theta_i + (1 - alpha) theta.

    >>> mixed(torch.tensor([4.0]), torch.tensor([8.0]), 0.25)
    tensor([7.])
    """
    return alpha * own + (1 - alpha) * outer


class StreamingDiLoCo(DiLoCo):
    """See the module's docstring for the rule.

    Args:
        model: The model.
        ranks: The workers.
        fragments: F, at most as many as the model has parameters, and as the period has updates.
        overlap: tau; 0 waits for each exchange.
        mix: alpha, the part of a worker's own weights that stays.
        settings: Those of `DiLoCo`, but for `momentum` and `period_warmup`.

    Raises:
        UserError: If a setting is out of range.
    """

    def __init__(
        self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, fragments: int = 2, overlap: int = 1, mix: float = 0.5, **settings: Any
    ) -> None:
        super().__init__(model, ranks, **settings)
        check_fraction("mix", mix)
        if self.momentum != "keep" or self.period_warmup:
            raise UserError("momentum and period_warmup: fragments are exchanged at times of their own; leave both out, or use DiLoCo")
        most = min(self.period, sum(len(own) for own in own_parameters(model)))
        if not 1 <= fragments <= most:
            raise UserError(f"fragments = {fragments}: must be from 1 to {most}, the parameters or the updates of a period; lower it")
        if not 0 <= overlap < self.period:
            raise UserError(f"overlap = {overlap}: must be from 0 to {self.period - 1}, within the period; lower it")
        self._fragments, self.overlap, self.mix = fragments_of(model, fragments), overlap, mix
        self._in_flight: dict[int, tuple[int, Future[Tensor]]] = {}  # by fragment: the update that it is due after, and the mean

    @property
    def is_plain(self) -> bool:
        """Never: fragments are not averaged at once."""
        return False

    @property
    def parts(self) -> list[list[Tensor]]:
        """The fragments."""
        return [[p.detach() for p in fragment] for fragment in self._fragments]

    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Take the outer steps that are due, and start the exchanges of this update."""
        was_local, self.updates = self.is_local, updates
        if not was_local:
            return
        if not self._outer:
            raise UserError(NO_BEFORE_STEP)
        self._finish_due(updates)
        local = updates - self.start_updates
        for number in range(len(self._fragments)):
            if starts(local, fragment=number, num_fragments=len(self._fragments), period=self.period):
                self._in_flight[number] = (updates + self.overlap, self.start(number))
        self._finish_due(updates)

    @torch.no_grad()
    def go_on_from(self, number: int, weights: Tensor) -> None:
        """Mix a fragment's new weights, shape (n,), with those of this worker."""
        for w, values in split_like(weights, self.parts[number]):
            w.copy_(mixed(w, values, self.mix) if self.overlap else values)

    def average_weights(self, optimizer: Optimizer) -> None:
        """End: take the outer steps that are still due, then average."""
        self._finish_due(self.updates + self.overlap)
        super().average_weights(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Also what is in flight, which is waited for."""
        flying = {number: (due, displacement_of(mean).clone()) for number, (due, mean) in self._in_flight.items()}
        return {**super().state_dict(), **({"in_flight": flying} if self.ranks.is_rank_0 else {})}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Also take up what was in flight: every rank has the same."""
        super().load_state_dicts(states)
        self._in_flight = {}
        for number, (due, mean) in states[0].get("in_flight", {}).items():
            there: Future[Tensor] = Future()
            there.set_result(mean.to(self.ranks.device))
            self._in_flight[number] = (due, there)

    def _finish_due(self, updates: int) -> None:
        for number in [number for number, (due, _) in self._in_flight.items() if due <= updates]:
            self.finish(number, self._in_flight.pop(number)[1])
