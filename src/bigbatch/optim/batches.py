"""What a step found out about its tensors, to be used again by the next one.

Types, layouts and addresses of parameters and their state are seldom others than in the step before. To look at each tensor's anew takes
longer than to launch all kernels of a step, and on a GPU longer than these run; to see that all are as they were takes a tenth of it.
"""

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter


class Batch(NamedTuple):
    """Parameters of one group with a gradient, of one device, type and layout over ranks."""

    params: list[Tensor]  # what this rank holds, row after row in memory: a contiguous copy where the parameter itself lies otherwise
    grads: list[Tensor]  # all of one type, in the memory order of their parameters; never written
    states: list[dict[str, Tensor]]  # in the same order, of at least float32
    where: Any  # their layout over ranks, None for plain tensors
    wholes: list[Tensor]  # the parameters as the user knows them
    copies: list[tuple[Tensor, Tensor]]  # parameters that lie otherwise, and the copies to be written back
    memo: dict[Any, Any]  # for what depends on all of the above but values and the addresses of gradients; the same while they are


class _Known(NamedTuple):
    batch: Batch  # without gradients
    params: list[Any]
    grads: list[Any]
    states: list[list[tuple[str, Tensor, int]]]  # of each parameter: name, tensor, address


class BatchCache:
    """The batches of a parameter group, while nothing changes but values and the addresses of gradients.

    Args:
        params: Of the group.
        batches: That they were found to make.
    """

    def __init__(self, params: Sequence[Tensor], batches: Sequence[Batch]) -> None:
        self._params = list(params)
        held = {id(p) for batch in batches for p in batch.params}
        self._others = [p for p in params if id(p) not in held]
        self._known = [
            _Known(
                batch._replace(grads=[]),
                [_layout(p) for p in batch.params],
                [_layout(g)[1:] for g in batch.grads],
                [[(name, value, value.data_ptr()) for name, value in state.items()] for state in batch.states],
            )
            for batch in batches
        ]

    @staticmethod
    def can_cache(batches: Sequence[Batch]) -> bool:
        """Whether this is for such batches: plain tensors, updated where they are, with their gradients as they are."""
        for batch in batches:
            if batch.where is not None or batch.copies or not all(type(p) in (Tensor, Parameter) for p in batch.params):
                return False
            if not all(g is p.grad and type(g) is Tensor for p, g in zip(batch.params, batch.grads, strict=True)):
                return False
            if not all(type(value) is Tensor for state in batch.states for value in state.values()):
                return False
        return True

    def get(self, params: Sequence[Tensor], state: Mapping[Any, Any]) -> list[Batch] | None:
        """The batches with the gradients of now; None if anything else is not as it was."""
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return None
        if any(p.grad is not None for p in self._others):
            return None
        batches = []
        for known in self._known:
            grads = [p.grad for p in known.batch.params]
            if not _as_they_were(known, grads, state):
                return None
            batches.append(known.batch._replace(grads=grads))  # type: ignore[arg-type]
        return batches


def _as_they_were(known: _Known, grads: Sequence[Tensor | None], state: Mapping[Any, Any]) -> bool:
    batch = known.batch
    if not all(type(g) is Tensor for g in grads):
        return False
    if not all(map(is_, map(state.get, batch.params), batch.states)):
        return False
    try:
        if [(g.dtype, g.shape, g.stride()) for g in grads] != known.grads or [_layout(p) for p in batch.params] != known.params:  # type: ignore[union-attr]
            return False
    except RuntimeError:  # a sparse tensor has no strides
        return False
    for now, then in zip(batch.states, known.states, strict=True):
        if len(now) != len(then):
            return False
        for name, value, address in then:
            if now.get(name) is not value or value.data_ptr() != address:
                return False
    return True


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.dtype, t.shape, t.stride()
