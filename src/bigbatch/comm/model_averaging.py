"""Model averaging: each rank trains its own weights, which are averaged over the ranks now and then."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import CheckpointError


class ModelAveraging(Comm):
    """Base of the methods whose ranks have different weights: evaluates and saves their average, and trains each rank's own weights.

    Args:
        model: Its trainable parameters differ between ranks.
        ranks: The workers.

    Attributes:
        updates: Updates made so far.
        distance: Consensus distance at the last average: the root mean square over ranks of |x_i - mean|; 0 while all weights are equal.
        relative_distance: The consensus distance divided by |mean|.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        super().__init__(model, ranks)
        self.updates = 0
        self.distance = self.relative_distance = 0.0
        self._local: list[Tensor] | None = None
        self._other: list[Tensor] = []  # state of another shape, which is not averaged: bases of matrices have no mean
        self._saved: list[Tensor] | None = None
        self._saved_other: list[Tensor] = []

    @property
    def weights_differ(self) -> bool:
        """Whether weights may differ between ranks now."""
        return self.ranks.world_size > 1

    @contextmanager
    def averaged_weights(self, optimizer: Optimizer) -> Iterator[None]:
        """Context in which weights and optimizer state are the average over ranks; restores each rank's own afterwards."""
        if not self.weights_differ:
            yield
            return
        self._local = local = self._average(optimizer)
        self._other = other_state_tensors(optimizer)
        try:
            yield
        finally:
            for tensor, before in zip(self._tensors(optimizer), local, strict=True):
                tensor.copy_(before)
            self._local, self._other = None, []

    def average_weights(self, optimizer: Optimizer) -> None:
        """Called after the last step: replace weights and optimizer state by their average permanently."""
        if self.weights_differ:
            self._average(optimizer)

    def metrics(self) -> dict[str, float]:
        """The consensus distance at the last average, absolute and relative."""
        return {"distance": self.distance, "relative_distance": self.relative_distance} if self.weights_differ else {}

    def state_dict(self) -> dict[str, Any]:
        """This rank's own weights and optimizer state, inside `averaged_weights`."""
        own = {} if self._local is None else {"own": self._local} | ({"other": self._other} if self._other else {})
        return {"updates": self.updates, **own}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load this rank's own weights; with another world size, all ranks start from the average."""
        self.updates = states[0].get("updates", 0)
        own = states[self.ranks.rank] if len(states) == self.ranks.world_size else {}
        self._saved, self._saved_other = own.get("own"), own.get("other", [])

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """Load the average, then this rank's own weights and optimizer state, if any were saved.

        Raises:
            CheckpointError: If the rank's own tensors have other shapes than those of the model and the optimizer.
        """
        super().load_full_state_dicts(optimizer, model_state, optimizer_state)
        if self._saved is not None:
            tensors, saved_tensors = self._tensors(optimizer), [*self._saved, *self._saved_other]
            if self._saved_other:  # files of earlier versions have none
                tensors += other_state_tensors(optimizer)
            if [t.shape for t in tensors] != [saved.shape for saved in saved_tensors]:
                raise CheckpointError("a worker's own weights and optimizer state have other shapes than the model's; start a new run")
            with torch.no_grad():
                for tensor, saved in zip(tensors, saved_tensors, strict=True):
                    tensor.copy_(saved)

    def weights(self) -> list[Tensor]:
        """The trainable parameters, detached."""
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    def _flat_weights(self) -> Tensor:
        """A copy of the weights as one flat tensor."""
        return torch.cat([w.reshape(-1) for w in self.weights()])

    @torch.no_grad()
    def _set_weights(self, flat: Tensor) -> None:
        """Copy a flat tensor into the weights."""
        for w, values in split_like(flat, self.weights()):
            w.copy_(values)

    def _tensors(self, optimizer: Optimizer) -> list[Tensor]:
        """The tensors that differ between ranks: weights, then optimizer state."""
        return [*self.weights(), *state_tensors(optimizer)]

    def _average(self, optimizer: Optimizer) -> list[Tensor]:
        """Average the tensors over ranks and measure the consensus distance. Returns this rank's tensors from before."""
        tensors = self._tensors(optimizer)
        local = [t.clone() for t in tensors]
        average_(tensors)
        weights = self.weights()
        moved = torch.stack([(w - before).double().square().sum() for w, before in zip(weights, local, strict=False)]).sum()
        self.distance = float(self.ranks.sum_(moved.reshape(1)) / self.ranks.world_size) ** 0.5
        length = float(torch.stack([w.double().square().sum() for w in weights]).sum()) ** 0.5
        self.relative_distance = self.distance / length if length else 0.0
        return local


@torch.no_grad()
def average_(tensors: list[Tensor], group: Any = None) -> None:
    """Replace tensors by their means over ranks, in one all-reduce."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for tensor, mean in split_like(flat, tensors):
        tensor.copy_(mean)


def split_like(flat: Tensor, tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor with its part of the flat tensor, reshaped to it."""
    for tensor, values in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        yield tensor, values.view_as(tensor)


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Optimizer state of its parameter's shape, in the order of the parameters; without step counts, though scalars match them."""
    return [v for p, v in _state(optimizer) if v.shape == p.shape]


def other_state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Optimizer state of another shape, such as the bases of a matrix' rows and columns; without step counts."""
    return [v for p, v in _state(optimizer) if v.shape != p.shape]


def _state(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with each tensor of its state but its step count."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        for name, value in optimizer.state[p].items():
            if isinstance(value, Tensor) and name != "step":
                yield p, value
