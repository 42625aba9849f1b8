"""Gossip: workers that exchange weights with their neighbours only, and never wait for all.

The methods differ in what they send and when (d_psgd.py, dmsgd.py, decentlam.py). Here is what they share: one flat buffer v of values,
sent to each neighbour as one message, and what comes of it,

    pull_i = sum_j W_ij (v_j - v_i),    so that  v_i + pull_i = sum_j W_ij v_j  where rows of W sum to 1.

A neighbour that is lost leaves its term out: its weight has become one's own. Weights start as the first worker's. What workers hold
differs from then on; evaluation and checkpoints get the average of all.
"""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigbatch.comm.gossip.topology import Topology, check_connected, check_doubly_stochastic
from bigbatch.comm.model_averaging import ModelAveraging, split_like
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.comm.rendezvous.backends import backend_of, cpu_group
from bigbatch.core.checks import UserError
from bigbatch.core.devices import CPU

AHEAD_BYTES = 1 << 20
"""Largest message that is received an update ahead: where bytes count more than latency, all senders at once only crowd the links (measured
with 25 MB, benchmarks/slow_links.py), and a second buffer for each neighbour costs memory."""
_exchanges = itertools.count()  # made so far by this process; in the same order by all


class _Message(NamedTuple):
    peer: int
    weight: float
    values: Tensor
    work: Any  # what torch gives to wait for; None of a message that goes in one call with others


class NeighbourExchange:
    """What neighbours' values pull this worker's by: begun by one call, ended by another, and in between in the background.

    Receives are posted before sends, so that two neighbours can't wait for each other; for small messages by gloo an update ahead: a
    neighbour that has heard of it sends at once, and a message takes one latency instead of two or three.

    Between GPUs messages go by NCCL, in one call for all. Where they can't (workers that share a GPU) or must not (NCCL does not outlive a
    lost worker, so not where that is to be tolerated) they go by gloo, through the host's memory, which waits for the GPU once an update.

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
        self._tag = 2 * next(_exchanges)  # what is still to be received when a model is done with must not catch another's messages
        self._posted: dict[int, list[_Message]] = {}  # receives of an update to come
        self._spare: list[Tensor] = []
        self._received: list[_Message] = []
        self._sent: list[_Message] = []
        self._works: list[Any] = []  # of messages that go in one call
        self._values: Tensor | None = None
        self._grouped = not tolerant and backend_of(ranks.device) not in (None, "gloo")
        self._group = None if self._grouped else cpu_group()

    @property
    def begun(self) -> bool:
        """Whether an exchange is on its way."""
        return self._values is not None

    def begin(self, values: Tensor, update: int) -> None:
        """Send to this update's neighbours and receive from them, in the background.

        Args:
            values: Shape (n,), the same n everywhere; must not change until `pull`.
            update: Its number, by which a topology may change; one more than the last.

        Raises:
            UserError: If updates don't follow each other.
        """
        assert not self.begun, "one exchange at a time"
        if self._posted and update not in self._posted:
            raise UserError(f"update {update} after {next(iter(self._posted)) - 1}: must follow each other; count them one by one")
        receives, sends = self._neighbours(update)
        self._values = values
        if self._grouped:
            buffers = {j: self._buffer(values) for j in receives}
            ops = [dist.P2POp(dist.irecv, buffer, j) for j, buffer in buffers.items()]
            works = dist.batch_isend_irecv(ops + [dist.P2POp(dist.isend, values, j) for j in sends]) if receives or sends else []
            weights = self.topology.weights(update)[self.ranks.rank]
            self._received = [_Message(j, float(weights[j]), buffer, None) for j, buffer in buffers.items()]
            self._works = [*works]  # one for all, or one for each
        else:
            message = values.to(CPU)  # itself, if it is there
            self._received = self._posted.pop(update) if self._posted else self._post(update, message)
            begun = [(j, self._tried(j, partial(dist.isend, message, j, self._group, self._tag + update % 2))) for j in sends]
            self._sent = [_Message(j, 0.0, message, work) for j, work in begun if work is not None]
            if values.nbytes <= AHEAD_BYTES:
                self._posted[update + 1] = self._post(update + 1, message)
        self.sent_bytes += values.nbytes * len(sends)

    def pull(self) -> Tensor:
        """Wait for the neighbours.

        Returns:
            sum_j W_ij (v_j - v_i), shape (n,).
        """
        assert self._values is not None, "nothing was begun"
        pull = torch.zeros_like(self._values)
        for work in self._works:
            work.wait()
        for message in self._received:
            if self._grouped or self._arrived(message):
                pull.add_(message.values.to(pull.device).sub_(self._values), alpha=message.weight)
        for message in self._sent:
            self._arrived(message)
        self._spare = [message.values for message in self._received]
        self._works, self._received, self._sent, self._values = [], [], [], None
        return pull

    def _neighbours(self, update: int) -> tuple[list[int], list[int]]:
        """Whom this worker hears in an update, and to whom it sends; without those that are lost."""
        receives, sends = self.topology.neighbours(self.ranks.rank, update)
        return [j for j in receives if j not in self.lost], [j for j in sends if j not in self.lost]

    def _buffer(self, like: Tensor) -> Tensor:
        return self._spare.pop() if self._spare else torch.empty_like(like)

    def _post(self, update: int, like: Tensor) -> list[_Message]:
        """Receive what an update's neighbours will send: as many values of the same type, on the CPU."""
        weights, messages = self.topology.weights(update)[self.ranks.rank], []
        for j in self._neighbours(update)[0]:
            buffer = self._buffer(like)
            work = self._tried(j, partial(dist.irecv, buffer, j, self._group, self._tag + update % 2))
            if work is not None:
                messages.append(_Message(j, float(weights[j]), buffer, work))
        return messages

    def _arrived(self, message: _Message) -> bool:
        return self._tried(message.peer, lambda: message.work.wait() or True) is not None

    def _tried(self, peer: int, action: Callable[[], Any]) -> Any:
        """What the action gives; None where the connection is broken and that is tolerated."""
        try:
            return action()
        except RuntimeError as error:
            if not self.tolerant:
                raise
            if peer not in self.lost:
                why = " ".join(str(error).split())[:100]
                warnings.warn(f"worker {peer} is lost ({why}): its weight is now one's own", stacklevel=3)
            self.lost.add(peer)
            return None


class Gossip(ModelAveraging):
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

    def __init__(
        self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, topology: Topology | None = None, tolerant: bool = False
    ) -> None:
        super().__init__(model, ranks)
        self._exchange: NeighbourExchange | None = None
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
        check_connected(topology)
        self._exchange = NeighbourExchange(topology, ranks, tolerant=tolerant)
        with torch.no_grad():
            first = self._flat()
            dist.broadcast(first, src=0)
            self._take(first)

    def divisor(self, num_samples: int, own_samples: int) -> float:  # noqa: ARG002
        """A worker's own samples: steps are its own."""
        return max(own_samples, 1)

    def metrics(self) -> dict[str, float]:
        """How far apart workers were when last averaged, and what this worker has sent to its neighbours so far."""
        return {**super().metrics(), **({"sent_bytes": self._exchange.sent_bytes} if self._exchange is not None else {})}

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
        for w, values in split_like(flat, self.weights()):
            w.add_(values)
