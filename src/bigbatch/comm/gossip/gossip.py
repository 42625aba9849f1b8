"""Gossip averaging: each worker exchanges weights with its neighbours only, so no worker waits for all others.

The methods differ in what they send and when (d_psgd.py, dmsgd.py, decentlam.py). They share this: each worker sends one flat tensor v to
each neighbour as one message, and computes the mixing term

    mixing_i = sum_j W_ij (v_j - v_i),    so that  v_i + mixing_i = sum_j W_ij v_j  where rows of W sum to 1.

The term of a lost neighbour is left out, which adds its weight to W_ii. All workers start with the weights of rank 0; evaluation and
checkpoints use the average over workers.
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
from bigbatch.core.hardware.devices import CPU

AHEAD_BYTES = 1 << 20
"""Largest message whose receive is posted one update ahead: for larger ones bandwidth matters more than latency, simultaneous senders only
congest the links (measured with 25 MB, benchmarks/slow_links.py), and a second buffer per neighbour costs memory."""
_exchanges = itertools.count()  # instances made by this process, in the same order on all ranks


class _Message(NamedTuple):
    peer: int
    weight: float
    values: Tensor
    work: Any  # torch's handle to wait for; None for a message of a batched call


class NeighbourExchange:
    """Asynchronous exchange with the neighbours: `start` sends and receives in the background, `wait` returns the mixing term.

    Receives are posted before sends, so that two neighbours cannot deadlock. With gloo, receives of small messages are posted one update
    ahead: the neighbour then sends at once, and a message takes one latency instead of two or three.

    Between GPUs, messages use NCCL, in one batched call. They use gloo and host memory, which synchronises with the GPU once an update,
    if workers share a GPU, or if lost neighbours are tolerated: NCCL does not survive a lost worker.

    Args:
        topology: The graph of workers and its mixing weights.
        ranks: The workers, as many as the topology has.
        tolerant: Continue without a neighbour whose connection breaks. Each neighbour of a lost worker detects the loss on its own; with
            symmetric weights the remaining workers keep their mean.

    Attributes:
        lost: Neighbours that were lost.
        sent_bytes: Bytes that this worker has sent.
    """

    def __init__(self, topology: Topology, ranks: Ranks, *, tolerant: bool = False) -> None:
        self.topology, self.ranks, self.tolerant = topology, ranks, tolerant
        self.lost: set[int] = set()
        self.sent_bytes = 0
        self._tag = 2 * next(_exchanges)  # a receive that is still posted when a run ends must not match the messages of the next run
        self._posted: dict[int, list[_Message]] = {}  # receives posted for the next update
        self._spare: list[Tensor] = []
        self._received: list[_Message] = []
        self._sent: list[_Message] = []
        self._works: list[Any] = []  # handles of the batched call
        self._values: Tensor | None = None
        self._batched = not tolerant and backend_of(ranks.device) not in (None, "gloo")
        self._group = None if self._batched else cpu_group()

    @property
    def in_progress(self) -> bool:
        """Whether an exchange was started and not waited for."""
        return self._values is not None

    def start(self, values: Tensor, update: int) -> None:
        """Send values to this update's neighbours and receive theirs, in the background.

        Args:
            values: Shape (n,), the same n on all workers; must not change until `wait` returns.
            update: Number of the update, which selects the topology's weights; one more than that of the last call.

        Raises:
            UserError: If updates are not consecutive.
        """
        assert not self.in_progress, "one exchange at a time"
        if self._posted and update not in self._posted:
            raise UserError(
                f"update {update} after {next(iter(self._posted)) - 1}: must be consecutive; pass one more than in the last call"
            )
        receives, sends = self._neighbours(update)
        self._values = values
        if self._batched:
            buffers = {j: self._buffer(values) for j in receives}
            ops = [dist.P2POp(dist.irecv, buffer, j) for j, buffer in buffers.items()]
            works = dist.batch_isend_irecv(ops + [dist.P2POp(dist.isend, values, j) for j in sends]) if receives or sends else []
            weights = self.topology.weights(update)[self.ranks.rank]
            self._received = [_Message(j, float(weights[j]), buffer, None) for j, buffer in buffers.items()]
            self._works = [*works]  # one for all messages, or one for each
        else:
            message = values.to(CPU)  # no copy, if it is there already
            self._received = self._posted.pop(update) if self._posted else self._post(update, message)
            handles = [(j, self._try(j, partial(dist.isend, message, j, self._group, self._tag + update % 2))) for j in sends]
            self._sent = [_Message(j, 0.0, message, work) for j, work in handles if work is not None]
            if values.nbytes <= AHEAD_BYTES:
                self._posted[update + 1] = self._post(update + 1, message)
        self.sent_bytes += values.nbytes * len(sends)

    def wait(self) -> Tensor:
        """Wait for the neighbours' values.

        Returns:
            The mixing term sum_j W_ij (v_j - v_i), shape (n,).
        """
        assert self._values is not None, "wait without start"
        mixing = torch.zeros_like(self._values)
        for work in self._works:
            work.wait()
        for message in self._received:
            if self._batched or self._wait_for(message):
                mixing.add_(message.values.to(mixing.device).sub_(self._values), alpha=message.weight)
        for message in self._sent:
            self._wait_for(message)
        self._spare = [message.values for message in self._received]
        self._works, self._received, self._sent, self._values = [], [], [], None
        return mixing

    def _neighbours(self, update: int) -> tuple[list[int], list[int]]:
        """The neighbours from which this worker receives in an update, and those to which it sends; without lost ones."""
        receives, sends = self.topology.neighbours(self.ranks.rank, update)
        return [j for j in receives if j not in self.lost], [j for j in sends if j not in self.lost]

    def _buffer(self, like: Tensor) -> Tensor:
        return self._spare.pop() if self._spare else torch.empty_like(like)

    def _post(self, update: int, like: Tensor) -> list[_Message]:
        """Post the receives of an update, into CPU tensors of the same size and type as `like`."""
        weights, messages = self.topology.weights(update)[self.ranks.rank], []
        for j in self._neighbours(update)[0]:
            buffer = self._buffer(like)
            work = self._try(j, partial(dist.irecv, buffer, j, self._group, self._tag + update % 2))
            if work is not None:
                messages.append(_Message(j, float(weights[j]), buffer, work))
        return messages

    def _wait_for(self, message: _Message) -> bool:
        return self._try(message.peer, lambda: message.work.wait() or True) is not None

    def _try(self, peer: int, action: Callable[[], Any]) -> Any:
        """The result of the action; None if the connection is broken and that is tolerated."""
        try:
            return action()
        except RuntimeError as error:
            if not self.tolerant:
                raise
            if peer not in self.lost:
                why = " ".join(str(error).split())[:100]
                warnings.warn(f"worker {peer} is lost ({why}): continuing without it", stacklevel=3)
            self.lost.add(peer)
            return None


class Gossip(ModelAveraging):
    """Base class of the gossip methods.

    Args:
        model: The model; its weights are set to those of rank 0.
        ranks: The workers.
        topology: Graph of the workers. Its weights must be doubly stochastic, or the mean drifts, and the graph must be connected.
        tolerant: As in `NeighbourExchange`.

    Raises:
        UserError: If the topology does not fit.
    """

    symmetric = False
    """Whether the method needs symmetric mixing weights."""

    def __init__(
        self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, topology: Topology | None = None, tolerant: bool = False
    ) -> None:
        super().__init__(model, ranks)
        self._exchange: NeighbourExchange | None = None
        if ranks.world_size == 1:
            return
        if topology is None or topology.num_workers != ranks.world_size:
            given = "none" if topology is None else f"a topology of {topology.num_workers} workers"
            raise UserError(f"topology: {given} given to {ranks.world_size} workers; make one for {ranks.world_size}, such as a ring")
        if self.symmetric and not topology.symmetric:
            raise UserError(
                f"topology {topology.name}: is directed, but {type(self).__name__} needs symmetric weights; use ring, torus or "
                "symmetric_exponential"
            )
        for update in range(topology.period or 1):
            check_doubly_stochastic(topology.weights(update))
        check_connected(topology)
        self._exchange = NeighbourExchange(topology, ranks, tolerant=tolerant)
        with torch.no_grad():
            weights = self._flat_weights()
            dist.broadcast(weights, src=0)
            self._set_weights(weights)

    def divisor(self, global_batch: float, local_batch: float) -> float:  # noqa: ARG002
        """The local batch: steps are local."""
        return local_batch or 1

    def metrics(self) -> dict[str, float]:
        """The consensus distance at the last average, and the bytes that this worker has sent."""
        return {**super().metrics(), **({"sent_bytes": self._exchange.sent_bytes} if self._exchange is not None else {})}

    def state_dict(self) -> dict[str, Any]:
        """This rank's own weights, and the bytes that it has sent."""
        return {**super().state_dict(), **({"sent_bytes": self._exchange.sent_bytes} if self._exchange is not None else {})}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load this rank's own weights, and the bytes that it has sent."""
        super().load_state_dicts(states)
        if self._exchange is not None and len(states) == self.ranks.world_size:
            self._exchange.sent_bytes = states[self.ranks.rank].get("sent_bytes", 0)

    @torch.no_grad()
    def _add(self, flat: Tensor) -> None:
        """Add a flat tensor to the weights."""
        for w, values in split_like(flat, self.weights()):
            w.add_(values)
