"""The mean loss as a function of the weights: its value and gradient at any vector of them, while the model stays where it is."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigbatch.curvature.products.evaluated import Loss
from bigbatch.curvature.products.flat import Flat
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.preserve_state import copied


class Landscape:
    """The exact mean loss over all samples, by the weights as one vector. Works on a copy of the model, in evaluation mode.

    The arguments are `Hessian`'s.

    Attributes:
        size: Number of chosen parameters, n.
        start: Where the model is, shape (n,).
        evaluations: Passes over the data so far.

    >>> at = Landscape(nn.Linear(1, 1, bias=False), lambda outputs, _: outputs.square().mean(), [(torch.ones(1, 1), torch.zeros(1, 1))])
    >>> at.loss_and_gradient(torch.tensor([3.0]))
    (9.0, tensor([6.]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[tuple[Any, Any]],
        *,
        parameters: Iterable[Tensor] | None = None,
        micro_batch: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        parameters = None if parameters is None else list(parameters)
        plain = Hessian(model, loss, batches, parameters=parameters, micro_batch=micro_batch).model  # refuses what can't be used
        self._flat, own = Flat(plain, parameters), copied(plain)
        of_name = dict(own.named_parameters())
        self._weights = [of_name[name] for name in self._flat.names]
        self._settings: dict[str, Any] = {"parameters": self._weights, "micro_batch": micro_batch, "group": group, "memory_bytes": 0}
        self._loss, self._data = loss, Hessian(own, loss, batches, **self._settings)
        self.size, self.start, self.evaluations = self._flat.size, self._flat.join(self._weights), 0

    def over(self, batches: Iterable[tuple[Any, Any]]) -> "Landscape":
        """The same weights over some of the samples, of which the caller takes the mean; shares the copy of the model."""
        other = copy.copy(self)
        other._data, other.evaluations = Hessian(self._data.model, self._loss, batches, **self._settings), 0
        other._data._pooled = True
        return other

    def loss(self, weights: Tensor) -> float:
        """Mean loss at weights (n,)."""
        self._go_to(weights)
        return self._data.loss()

    def loss_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Mean loss at weights (n,), and its gradient, (n,), by one pass over the data."""
        self._go_to(weights)
        return self._data.loss_and_gradient()

    @torch.no_grad()
    def _go_to(self, weights: Tensor) -> None:
        self.evaluations += 1
        for p, value in zip(self._weights, self._flat.split(weights), strict=True):
            p.copy_(value)
