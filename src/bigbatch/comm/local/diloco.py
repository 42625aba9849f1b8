r"""DiLoCo: local steps, whose mean displacement an outer optimizer follows.

Paper:   Douillard et al. 2023, DiLoCo: Distributed Low-Communication Training of Language Models, arXiv:2311.08105, Algorithm 1.
Formula: worker i takes H updates of the inner optimizer from theta to theta_i, then all of them
             Delta  = theta - (1/W) sum_i theta_i
             u     <- mu u + Delta
             theta <- theta - eta (Delta + mu u),    theta_i <- theta
Units:   H (period) in updates. At peak, the displacement of H updates has the size of H learning rates.
Differs: any torch optimizer inside; its state stays with its worker ("keep", the paper's), is averaged ("average") or is set to zero
         ("reset"). H may be shorter in the beginning. The displacement may be compressed. With eta = 1, mu = 0 and no compression this is
         `LocalSGD`, bit for bit. Evaluation within a period, and a run that ends in one, use the mean of the workers' weights. Workers of
         a group (`group_size`) may share every gradient by all-reduce: together they are one worker of the paper.
"""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.optim import Optimizer

from bigbatch.comm.compression.compressor import Compressor
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.local.outer import NO_BEFORE_STEP, OuterState, outer_state, outer_step_
from bigbatch.comm.model_averaging import split_like
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import CheckpointError, UserError, check_fraction, check_positive
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="DiLoCo",
    title="DiLoCo: Distributed Low-Communication Training of Language Models",
    authors="Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen",
    year=2023,
    arxiv="2311.08105",
    where="Algorithm 1",
    study="studies/local",
)


@dataclasses.dataclass(frozen=True)
class Displacement:
    """What is exchanged, as a compressor wants it: like a bucket of gradients."""

    values: Tensor  # shape (n,)
    part: int

    def buffer(self) -> Tensor:
        """The values of this worker."""
        return self.values

    def index(self) -> int:
        """Which part of the weights it is of."""
        return self.part


class DiLoCo(LocalSGD):
    """See the module's docstring for the rule. Call `before_step` before each step of the inner optimizer, and `after_step` after it.

    Args:
        model: The model; all workers start with the weights of rank 0.
        ranks: The workers; one alone has an outer optimizer too.
        period: H.
        start_updates: Updates of all-reduce before the first local one.
        period_warmup: Updates over which H grows linearly from 1.
        outer_lr: eta.
        outer_momentum: mu.
        nesterov: Whether the outer step looks ahead.
        momentum: What happens to the inner optimizer's state at an exchange.
        compressor: Compresses the displacements. Each of several has its errors apart.
        group_size: Workers that share every gradient by all-reduce, such as those of a host; must divide the number of workers.

    Raises:
        UserError: If a setting is out of range, or a group does not divide evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks = SINGLE_PROCESS,
        *,
        period: int = 30,
        start_updates: int = 0,
        period_warmup: int = 0,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        nesterov: bool = True,
        momentum: Literal["average", "keep", "reset"] = "keep",
        compressor: Compressor | None = None,
        group_size: int = 1,
    ) -> None:
        check_positive("outer_lr", outer_lr)
        check_fraction("outer_momentum", outer_momentum)
        if group_size > 1 and start_updates:
            raise UserError(f"start_updates = {start_updates} with group_size = {group_size}: only one of the two; set one to its default")
        inner = ranks
        if group_size > 1:
            if ranks.world_size % group_size:
                raise UserError(f"group_size = {group_size}: must divide the {ranks.world_size} workers; choose a divisor")
            groups = [dist.new_group(list(range(i, i + group_size))) for i in range(0, ranks.world_size, group_size)]
            inner = Ranks(ranks.rank % group_size, group_size, ranks.device, groups[ranks.rank // group_size])
        timing: dict[str, Any] = {"period": period, "start_updates": start_updates, "period_warmup": period_warmup}
        super().__init__(model, inner, momentum=momentum, **timing)
        self.ranks, self.in_groups = ranks, group_size > 1
        self.outer_lr, self.outer_momentum, self.nesterov = outer_lr, outer_momentum, nesterov
        self.compressor = compressor
        self.sent_bytes = 0.0
        self._outer: list[OuterState] = []
        if group_size > 1:
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor, src=0)

    @property
    def is_plain(self) -> bool:
        """Whether this is an average of the weights: nothing to remember, and nothing to round otherwise."""
        return self.outer_lr == 1 and self.outer_momentum == 0 and self.compressor is None

    @property
    def parts(self) -> list[list[Tensor]]:
        """The weights that are exchanged together."""
        return [self.weights()]

    def divisor(self, global_batch: float, local_batch: float) -> float:
        """The local batch, once steps are local; of a group, its share of the global one."""
        return global_batch / self.ranks.world_size if self.in_groups else super().divisor(global_batch, local_batch)

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Gradients stay with their worker once steps are local, or with its group."""
        return super(LocalSGD, self).sync_context(last) if self.in_groups else super().sync_context(last)

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Remember the weights from which the first local step is taken."""
        if not self.is_plain and not self._outer and self.is_local:
            self._outer = [outer_state(flat(part)) for part in self.parts]

    def exchange(self, optimizer: Optimizer) -> None:
        """An outer step, from which all workers go on."""
        if self.is_plain:
            super().exchange(optimizer)
            return
        if not self._outer:
            raise UserError(NO_BEFORE_STEP)
        self.exchange_states(optimizer)
        for number in range(len(self.parts)):
            self.finish(number, self.start(number))

    def displacement(self, number: int) -> Tensor:
        """How far this worker has taken a part from the outer weights: theta - theta_i, shape (n,)."""
        return self._outer[number].weights - flat(self.parts[number])

    @torch.no_grad()
    def start(self, number: int) -> Future[Tensor]:
        """Start the exchange of a part.

        Returns:
            The mean displacement over workers, shape (n,), once it is there.
        """
        displacement = self.displacement(number)
        if self.ranks.world_size == 1:
            alone: Future[Tensor] = Future()
            alone.set_result(displacement)
            return alone
        compressor = self.compressor or Compressor()
        self.sent_bytes += compressor.sent_bytes(displacement.numel(), displacement.element_size(), self.ranks.world_size)
        return compressor.comm_hook(Displacement(displacement, number))  # type: ignore[arg-type]

    @torch.no_grad()
    def finish(self, number: int, mean: Future[Tensor]) -> None:
        """Take the outer step of a part, and go on from there."""
        value = displacement_of(mean)
        outer = self._outer[number]
        outer_step_(outer, value, lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.nesterov)
        self.go_on_from(number, outer.weights)

    def go_on_from(self, number: int, weights: Tensor) -> None:
        """Give a part of the model new weights, shape (n,)."""
        for w, values in split_like(weights, self.parts[number]):
            w.copy_(values)

    def metrics(self) -> dict[str, float]:
        """Those of `ModelAveraging`, and the bytes that this worker has sent for outer steps."""
        return {**super().metrics(), **({} if self.is_plain else {"sent_bytes": self.sent_bytes})}

    def state_dict(self) -> dict[str, Any]:
        """This rank's own weights, errors and bytes; the outer state, which all ranks have, with rank 0."""
        state = {**super().state_dict(), "sent_bytes": self.sent_bytes}
        if self.compressor is not None:
            state["compressor"] = self.compressor.state_dict()
        if self.ranks.is_rank_0:
            state["outer"] = [tuple(part) for part in self._outer]
        return state

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load the outer state, and this rank's own; with another world size, all ranks start from the average of the workers' weights."""
        super().load_state_dicts(states)
        first, same = states[0], len(states) == self.ranks.world_size
        self._outer = [OuterState(*(t.to(self.ranks.device) for t in part)) for part in first.get("outer", [])]
        if [len(part.weights) for part in self._outer] not in ([], [sum(w.numel() for w in part) for part in self.parts]):
            raise CheckpointError("the outer weights have another size than the model's; start a new run")
        self.sent_bytes = states[self.ranks.rank if same else 0].get("sent_bytes", 0.0)
        if self.compressor is not None and all("compressor" in state for state in states):
            self.compressor.load_state_dicts([state["compressor"] for state in states], self.ranks.rank, self.ranks.world_size)


def displacement_of(mean: Future[Tensor]) -> Tensor:
    """Wait for a compressor's mean; torch's own hooks return it in a list."""
    value = mean.wait()
    return value[0] if isinstance(value, list) else value


def flat(tensors: list[Tensor]) -> Tensor:
    """A copy of tensors as one, shape (n,)."""
    return torch.cat([t.reshape(-1) for t in tensors])
