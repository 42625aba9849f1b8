"""Gossip: workers that exchange weights with their neighbours only, and never wait for all.

The methods differ in what they send and when (d_psgd.py, dmsgd.py, decentlam.py). Here is what they share: one flat buffer v of values,
sent to each neighbour as one message, and what comes of it,

    pull_i = sum_j W_ij (v_j - v_i),    so that  v_i + pull_i = sum_j W_ij v_j  where rows of W sum to 1.

A neighbour that is lost leaves its term out: its weight has become one's own. Weights start as the first worker's. What workers hold
differs from then on; evaluation and checkpoints get the average of all.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigbatch.comm.own_weights import OwnWeights
from bigbatch.comm.ranks import ALONE, Ranks
from bigbatch.comm.topology import Topology, check_doubly_stochastic, check_reaches_all
from bigbatch.core.checks import UserError


class _Message(NamedTuple):
    peer: int
    weight: float
    work: Any  # what torch gives to wait for


class Exchange:
    """What neighbours' values pull this worker's by: begun by one call, ended by another, and in between in the background.

    Receives are posted before sends: two neighbours can't wait for each other, and half the time of the other order is saved.

    Args:
        topology: Who talks to whom, with which weights.
        ranks: The workers; as many as the topology has.
        tolerant: Go on without a neighbour whose connection breaks. Of all neighbours of a lost worker each notices by itself; with
            symmetric weights those left keep their mean.

    Attributes:
        lost: Neighbours found lost.
        sent_bytes: By this worker, so far.
    """

    def __init__(self, topology: Topology, ranks: Ranks, *, tolerant: bool = False) -> None:
        self.topology, self.ranks, self.tolerant = topology, ranks, tolerant
        self.lost: set[int] = set()
        self.sent_bytes = 0
        self._buffers: dict[int, Tensor] = {}
        self._received: list[_Message] = []
        self._sent: list[_Message] = []
        self._values: Tensor | None = None

    @property
    def begun(self) -> bool:
        """Whether an exchange is on its way."""
        return self._values is not None

    def begin(self, values: Tensor, update: int) -> None:
        """Send to this update's neighbours and receive from them, in the background.

        Args:
            values: Shape (n,), the same n everywhere; must not change until `pull`.
            update: Its number, by which a topology may change.
        """
        assert not self.begun, "one exchange at a time"
        rank = self.ranks.rank
        weights = self.topology.weights(update)
        receives = [j for j in range(self.ranks.world_size) if j != rank and weights[rank, j] > 0 and j not in self.lost]
        sends = [j for j in range(self.ranks.world_size) if j != rank and weights[j, rank] > 0 and j not in self.lost]
        for j in receives:
            if j not in self._buffers or self._buffers[j].shape != values.shape or self._buffers[j].dtype != values.dtype:
                self._buffers[j] = torch.empty_like(values)
        self._values = values
        if self.ranks.device.type == "cpu":
            self._received = [_Message(j, weights[rank, j], dist.irecv(self._buffers[j], j)) for j in receives]
            self._sent = [_Message(j, 0.0, dist.isend(values, j)) for j in sends]
        else:  # grouped, or two of NCCL's workers would wait for each other
            ops = [dist.P2POp(dist.irecv, self._buffers[j], j) for j in receives] + [dist.P2POp(dist.isend, values, j) for j in sends]
            works = dist.batch_isend_irecv(ops)
            self._received = [_Message(j, weights[rank, j], works[0]) for j in receives]
            self._sent = [_Message(-1, 0.0, work) for work in works]
        self.sent_bytes += values.nbytes * len(sends)

    def pull(self) -> Tensor:
        """Wait for the neighbours.

        Returns:
            sum_j W_ij (v_j - v_i), shape (n,).
        """
        assert self._values is not None, "nothing was begun"
        pull = torch.zeros_like(self._values)
        for message in self._received:
            if self._arrived(message):
                pull.add_(self._buffers[message.peer].sub_(self._values), alpha=message.weight)
        for message in self._sent:
            self._arrived(message)
        self._received, self._sent, self._values = [], [], None
        return pull

    def _arrived(self, message: _Message) -> bool:
        try:
            message.work.wait()
        except RuntimeError as error:
            if not self.tolerant or message.peer < 0:
                raise
            if message.peer not in self.lost:
                warnings.warn(
                    f"worker {message.peer} is lost ({' '.join(str(error).split())[:100]}); its weight is now one's own", stacklevel=2
                )
            self.lost.add(message.peer)
            return False
        return True


class Gossip(OwnWeights):
    """What all methods of gossip share; use one of them.

    Args:
        model: Made the first worker's.
        ranks: The workers.
        topology: Of as many workers. Must be doubly stochastic, or the mean of all drifts, and connected.
        tolerant: As in `Exchange`.

    Raises:
        UserError: If the topology does not fit.
    """

    symmetric = False
    """Whether a method needs symmetric weights."""

    def __init__(self, model: nn.Module, ranks: Ranks = ALONE, *, topology: Topology | None = None, tolerant: bool = False) -> None:
        super().__init__(model, ranks)
        self._rehearsing = False
        self._exchange: Exchange | None = None
        if ranks.world_size == 1:
            return
        if topology is None or topology.num_workers != ranks.world_size:
            has = "none" if topology is None else f"one of {topology.num_workers}"
            raise UserError(f"topology: {has} given to {ranks.world_size} workers; make one of {ranks.world_size}, such as ring")
        if self.symmetric and not topology.symmetric:
            raise UserError(
                f"topology {topology.name}: is directed, and {type(self).__name__} needs symmetric weights; choose ring, torus or "
                "symmetric_exponential"
            )
        for update in range(topology.period or 1):
            check_doubly_stochastic(topology.weights(update))
        check_reaches_all(topology)
        self._exchange = Exchange(topology, ranks, tolerant=tolerant)
        with torch.no_grad():
            own, first = self._flat(), self._flat()
            dist.broadcast(first, src=0)
            self._add(first - own)

    def divisor(self, num_samples: int, own_samples: int) -> float:  # noqa: ARG002
        """A worker's own samples: steps are its own."""
        return max(own_samples, 1)

    def facts(self) -> dict[str, float]:
        """How far apart workers were when last averaged, and what this worker has sent to its neighbours so far."""
        return {**super().facts(), **({"sent_bytes": self._exchange.sent_bytes} if self._exchange is not None else {})}

    def state_dict(self) -> dict[str, Any]:
        """Own weights, and what was sent."""
        return {**super().state_dict(), **({"sent_bytes": self._exchange.sent_bytes} if self._exchange is not None else {})}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Own weights, and what was sent."""
        super().load_state_dicts(states)
        if self._exchange is not None and len(states) == self.ranks.world_size:
            self._exchange.sent_bytes = states[self.ranks.rank].get("sent_bytes", 0)

    @torch.no_grad()
    def _add(self, flat: Tensor) -> None:
        """Add flat values to the weights."""
        weights = self.weights()
        for w, values in zip(weights, torch.split(flat, [w.numel() for w in weights]), strict=True):
            w.add_(values.view_as(w))
