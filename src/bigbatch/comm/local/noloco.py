r"""NoLoCo: local steps, then a momentum step with one random other worker. No worker waits for all others.

Paper:   Kolehmainen, Blagoev, Donaghy, Ersoy, Nies 2025, NoLoCo: No-all-reduce Low Communication Training Method for Large Models,
         arXiv:2506.10911, Section 3.2.
Formula: worker i takes H updates of the inner optimizer from phi_i to theta_i; with a random partner j
             delta_i <- a delta_i + b/2 (Delta_i + Delta_j) - g (phi_i - 1/2 (phi_i + phi_j)),      Delta = theta - phi
             phi_i   <- phi_i + delta_i,    theta_i <- phi_i
Units:   H (period) in updates. A message has twice the size of the weights: displacement and weights.
Differs: pairs only, as in the paper's experiments; g is b unless given, as in the authors' code. The pipeline's random routes are not here.
         Without its partner, a worker takes the step with its own displacement. Evaluation uses the mean of all workers' weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.local.outer import NO_BEFORE_STEP, OuterState, outer_state
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import CheckpointError, UserError, check_fraction, check_positive
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="NoLoCo",
    title="NoLoCo: No-all-reduce Low Communication Training Method for Large Models",
    authors="Kolehmainen, Blagoev, Donaghy, Ersoy, Nies",
    year=2025,
    arxiv="2506.10911",
    where="Section 3.2",
    study="studies/local",
)


def noloco_step(velocity: Tensor, mean_displacement: Tensor, mixing: Tensor, *, a: float, b: float, g: float) -> Tensor:
    """The next delta: a delta + b mean(Delta) + g (mean(phi) - phi).

    Args:
        velocity: delta, shape (n,).
        mean_displacement: Of the pair, theta - phi, shape (n,).
        mixing: The pair's mean of phi minus the worker's own, shape (n,).
        a: Momentum.
        b: Outer learning rate.
        g: Pull towards the partner.

    >>> noloco_step(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0]), a=0.5, b=0.25, g=0.125)
    tensor([1.5000])
    """
    return a * velocity + b * mean_displacement + g * mixing


class NoLoCo(Gossip):
    """See the module's docstring for the rule. Call `before_step` before each step of the inner optimizer, and `after_step` after it.

    Args:
        model: The model; its weights are set to those of rank 0.
        ranks: The workers, an even number of them.
        period: H.
        outer_lr: b.
        outer_momentum: a.
        pull: g; b if left out. Weights of the workers come together while sqrt(1/2) a < g < sqrt(1/2) (2 + a) (the paper's Theorem 1).
        tolerant: Whether a worker goes on without a partner that is lost.

    Raises:
        UserError: If a setting is out of range, or the number of workers is odd.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks = SINGLE_PROCESS,
        *,
        period: int = 50,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.5,
        pull: float | None = None,
        tolerant: bool = False,
    ) -> None:
        check_positive("period", period)
        check_positive("outer_lr", outer_lr)
        check_fraction("outer_momentum", outer_momentum)
        pairs = topology("random_match", ranks.world_size) if ranks.world_size > 1 else None
        super().__init__(model, ranks, topology=pairs, tolerant=tolerant)
        self.period, self.outer_lr, self.outer_momentum = period, outer_lr, outer_momentum
        self.pull = outer_lr if pull is None else pull
        self._outer: OuterState | None = None  # phi and delta

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Remember the weights from which the first local step is taken."""
        if self._outer is None:
            self._outer = outer_state(self._flat_weights())

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, updates: int) -> None:  # noqa: ARG002
        """Go on from a step with this period's partner."""
        self.updates = updates
        if updates % self.period:
            return
        if self._outer is None:
            raise UserError(NO_BEFORE_STEP)
        phi, velocity = self._outer
        displacement, mixing = self._flat_weights() - phi, torch.zeros_like(phi)
        if self._exchange is not None:
            self._exchange.start(torch.cat([displacement, phi]), updates // self.period - 1)
            towards, mixing = self._exchange.wait().chunk(2)
            displacement += towards
        velocity.copy_(noloco_step(velocity, displacement, mixing, a=self.outer_momentum, b=self.outer_lr, g=self.pull))
        phi += velocity
        self._set_weights(phi)

    def state_dict(self) -> dict[str, Any]:
        """This rank's own weights, its phi and delta, and the bytes that it has sent."""
        return {**super().state_dict(), **({} if self._outer is None else self._outer._asdict())}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load this rank's own phi and delta; with another world size, all start from the means of both."""
        super().load_state_dicts(states)
        if "velocity" not in states[0]:
            return
        of = [states[self.ranks.rank]] if len(states) == self.ranks.world_size else states
        size = sum(w.numel() for w in self.weights())
        if any(len(state["weights"]) != size for state in of):
            raise CheckpointError("the outer weights have another size than the model's; start a new run")
        self._outer = OuterState(*(torch.stack([state[name] for state in of]).mean(0).to(self.ranks.device) for name in OuterState._fields))
