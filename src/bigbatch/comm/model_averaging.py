"""What ways of working together have in common whose workers hold weights of their own between averages."""

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
    """Evaluates and saves the average of all workers' weights; each goes on from its own.

    Args:
        model: Its trainable parameters are what workers have of their own.
        ranks: The workers.

    Attributes:
        updates: Updates made so far.
        distance: Root mean square over workers of |x_i - mean|, when last averaged; 0 while all are alike.
        relative_distance: The same over |mean|.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        super().__init__(model, ranks)
        self.updates = 0
        self.distance = self.relative_distance = 0.0
        self._own: list[Tensor] | None = None
        self._saved: list[Tensor] | None = None

    @property
    def weights_differ(self) -> bool:
        """Whether weights may now differ between workers."""
        return self.ranks.world_size > 1

    @contextmanager
    def averaged_weights(self, optimizer: Optimizer) -> Iterator[None]:
        """The average for a while, of weights and optimizer state; each worker's own afterwards."""
        if not self.weights_differ:
            yield
            return
        self._own = own = self._average(optimizer)
        try:
            yield
        finally:
            for tensor, before in zip(self._tensors(optimizer), own, strict=True):
                tensor.copy_(before)
            self._own = None

    def average_weights(self, optimizer: Optimizer) -> None:
        """After the last step: the average, for good."""
        if self.weights_differ:
            self._average(optimizer)

    def metrics(self) -> dict[str, float]:
        """How far apart workers were when last averaged."""
        return {"distance": self.distance, "relative_distance": self.relative_distance} if self.weights_differ else {}

    def state_dict(self) -> dict[str, Any]:
        """This worker's own weights and optimizer state, where they are not those of all."""
        return {"updates": self.updates, **({"own": self._own} if self._own is not None else {})}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Where the number of workers is another, all start from the average."""
        self.updates = states[0].get("updates", 0)
        self._saved = states[self.ranks.rank].get("own") if len(states) == self.ranks.world_size else None

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """The average; then each worker's own over it.

        Raises:
            CheckpointError: If a worker's own are not of the model and the optimizer.
        """
        super().load_full_state_dicts(optimizer, model_state, optimizer_state)
        if self._saved is not None:
            tensors = self._tensors(optimizer)
            if [t.shape for t in tensors] != [own.shape for own in self._saved]:
                raise CheckpointError("a worker's own weights and optimizer state have other shapes than the model's; start anew")
            with torch.no_grad():
                for tensor, own in zip(tensors, self._saved, strict=True):
                    tensor.copy_(own)

    def weights(self) -> list[Tensor]:
        """What is trained, detached."""
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    def _flat(self) -> Tensor:
        """A copy of the weights, flat."""
        return torch.cat([w.reshape(-1) for w in self.weights()])

    @torch.no_grad()
    def _take(self, flat: Tensor) -> None:
        """Make flat values the weights."""
        for w, values in split_like(flat, self.weights()):
            w.copy_(values)

    def _tensors(self, optimizer: Optimizer) -> list[Tensor]:
        """What differs between workers: weights, then state."""
        return [*self.weights(), *state_tensors(optimizer)]

    def _average(self, optimizer: Optimizer) -> list[Tensor]:
        """Average everything that differs, and see how far this worker and all were apart. Returns what this one had."""
        tensors = self._tensors(optimizer)
        own = [t.clone() for t in tensors]
        average_(tensors)
        weights = self.weights()
        moved = torch.stack([(w - before).double().square().sum() for w, before in zip(weights, own, strict=False)]).sum()
        self.distance = float(self.ranks.sum_(moved.reshape(1)) / self.ranks.world_size) ** 0.5
        length = float(torch.stack([w.double().square().sum() for w in weights]).sum()) ** 0.5
        self.relative_distance = self.distance / length if length else 0.0
        return own


@torch.no_grad()
def average_(tensors: list[Tensor], group: Any = None) -> None:
    """Replace tensors by their means over workers, in one exchange."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for tensor, mean in split_like(flat, tensors):
        tensor.copy_(mean)


def split_like(flat: Tensor, tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor, with its part of the flat values in its shape."""
    for tensor, values in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        yield tensor, values.view_as(tensor)


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """State that has its parameter's shape, in the order of the parameters; not the count of steps, which a scalar's shape is too."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [(p, name, v) for p in params for name, v in optimizer.state[p].items()]
    return [v for p, name, v in states if isinstance(v, Tensor) and v.shape == p.shape and name != "step"]
