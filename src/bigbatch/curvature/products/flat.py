"""Parameters of many shapes as one vector, and back."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bigbatch.core.checks import UserError


class Flat:
    """The parameters of a model that an operator is about, one after another in the model's order.

    Args:
        model: Any module.
        parameters: Which of its parameters, frozen ones too; those that require gradients, if left out.

    Attributes:
        names: As in `model.named_parameters()`.
        size: Numbers in all of them.
        dtype: The widest of theirs.
        device: Where they are.

    Raises:
        UserError: If there are none, one is not the model's, or they are not float32 or float64 tensors of one device.

    >>> flat = Flat(nn.Linear(2, 1))
    >>> flat.names, flat.size
    (['weight', 'bias'], 3)
    >>> [tuple(t.shape) for t in flat.split(torch.arange(3.0))]
    [(1, 2), (1,)]
    """

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor] | None = None) -> None:
        chosen = _chosen(model, parameters)
        if not sum(p.numel() for p in chosen.values()):
            raise UserError(f"{type(model).__name__} has no parameters that require gradients: choose some by parameters=")
        for name, p in chosen.items():
            _check(name, p)
        devices = sorted({str(p.device) for p in chosen.values()})
        if len(devices) > 1:
            raise UserError(f"parameters on {', '.join(devices)}: must be on one device; choose those of one by parameters=")
        self.names = list(chosen)
        self._shapes = [p.shape for p in chosen.values()]
        self._dtypes = [p.dtype for p in chosen.values()]
        self._numels = [p.numel() for p in chosen.values()]
        self.size = sum(self._numels)
        self.dtype = torch.float64 if torch.float64 in self._dtypes else torch.float32
        self.device = next(iter(chosen.values())).device

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (n,) as tensors of the parameters' shapes and dtypes."""
        pieces = torch.split(vector, self._numels)
        return [piece.view(s).to(d) for piece, s, d in zip(pieces, self._shapes, self._dtypes, strict=True)]

    def join(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Tensors of the parameters' shapes as a vector (n,); None stands for zeros."""
        zeros = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.cat(
            [zeros.expand(n) if t is None else t.detach().reshape(-1).to(self.dtype) for t, n in zip(tensors, self._numels, strict=True)]
        )


def _chosen(model: nn.Module, parameters: Iterable[Tensor] | None) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    if parameters is None:
        return {name: p for name, p in own.items() if p.requires_grad}
    if isinstance(parameters, Tensor):
        raise UserError("parameters: one tensor; give a list of them")
    wanted = {id(p) for p in parameters}
    strangers = len(wanted - {id(p) for p in own.values()})
    if strangers:
        raise UserError(f"parameters: {strangers} of {len(wanted)} are not the model's; give some of model.parameters()")
    return {name: p for name, p in own.items() if id(p) in wanted}


def _check(name: str, p: Tensor) -> None:
    if isinstance(p, DTensor):
        raise UserError(f"parameter {name!r} is sharded: products need whole parameters; gather them into a plain model first")
    if p.dtype not in (torch.float32, torch.float64):
        raise UserError(f"parameter {name!r} of {p.dtype}: too coarse for second derivatives; give copy.deepcopy(model).float()")
