"""What operators over a data set share: passes over the data, the exact mean over samples and workers, and graphs that are kept.

A pass leaves the model, its buffers, `.grad`, `requires_grad` and all random states as found. It is made on stand-ins for the parameters,
in evaluation mode unless `training` is asked for, with random numbers that are the same at every pass.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from bigbatch.core.checks import Elsewhere, NotFinite, UserError
from bigbatch.curvature.fixed_batches import Piece, checksum, pieces_of
from bigbatch.curvature.flat import Flat
from bigbatch.curvature.left_as_found import drawing_from, left_as_found, twice_differentiable
from bigbatch.curvature.operator import as_rows

Loss = Callable[[Any, Any], Tensor]
"""Takes outputs and targets of n samples and gives their n losses, or the mean of them."""
Product = Callable[[list[Tensor]], list[Tensor | None]]
"""A map from tensors of the parameters' shapes to such tensors; None stands for zeros."""
_NOT_TWICE = re.compile(r"once_differentiable|differentiate twice|double.?backward|derivative for .* not implemented", re.IGNORECASE)


class Graph(NamedTuple):
    """A micro-batch, evaluated."""

    weights: list[Tensor]  # stand-ins of the chosen parameters
    outputs: Any
    loss: Tensor  # sum over the samples, scalar


class OverData(ABC):
    """An operator that is a mean over samples. See `Hessian` for the arguments.

    Attributes:
        size: Number of chosen parameters, n.
        dtype: Of vectors and products: the parameters'.
        device: Of vectors and products: the parameters'.
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
        training: bool = False,
        memory_bytes: int = 2**30,
    ) -> None:
        if isinstance(batches, Iterator):
            raise UserError(
                f"batches: a {type(batches).__name__} can be read only once; give a list or a DataLoader, which can be read anew"
            )
        if micro_batch is not None and micro_batch < 1:
            raise UserError(f"micro_batch = {micro_batch}: must be at least one sample; leave it out for whole batches")
        self.model = _plain(model)
        self._loss, self._batches, self._micro_batch, self._group = loss, batches, micro_batch, group
        self._training, self._memory_bytes = training, memory_bytes
        self._flat = Flat(self.model, parameters)
        self.size, self.dtype, self.device = self._flat.size, self._flat.dtype, self._flat.device
        self._wide = torch.float32 if self.device.type == "mps" else torch.float64
        self._checksums: list[list[int]] | None = None  # of the batches
        self._num_passes = 0
        self._kept: list[Product] | None = None
        self._kept_at: int | None = None  # checksum of the weights
        self._samples: int | None = None  # of this rank, once kept
        self._total_samples: int | None = None

    @abstractmethod
    def _product(self, graph: Graph) -> Product:
        """The map of one micro-batch: the sum over its samples."""

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """Products with one vector (n,), or with k rows (k, n), of the same shape. All ranks of the group call it, with equal vectors.

        Raises:
            UserError: If the vectors do not fit or differ between ranks, the batches are empty or change between passes, the loss is
                not finite, or it can't be differentiated twice.
            Elsewhere: On the other ranks, if one of them raised.
        """
        rows = as_rows(self, vectors)
        split = [self._flat.split(row) for row in rows]

        def products(map: Product) -> Tensor:
            return torch.stack([self._flat.join(_differentiated(map, row)) for row in split])

        return self._mean(lambda: self._products(products, len(rows)), checksum(rows)).to(self.dtype).view(vectors.shape)

    @property
    def samples(self) -> int:
        """Samples that the mean is over, those of all ranks."""
        if self._total_samples is None:
            self._mean(lambda: (torch.zeros((), dtype=self._wide, device=self.device), sum(p.samples for p in self._pieces()), True))
        assert self._total_samples is not None
        return self._total_samples

    def loss(self) -> float:
        """Mean loss over all samples."""

        def summed() -> tuple[Tensor, int, bool]:
            total, samples = torch.zeros((), dtype=self._wide, device=self.device), 0
            with torch.no_grad():
                for piece in self._pieces():
                    total += self._evaluate(piece).loss
                    samples += piece.samples
            return total, samples, True

        return float(self._mean(summed))

    def gradient(self) -> Tensor:
        """Gradient of the mean loss towards the chosen parameters, shape (n,)."""

        def summed() -> tuple[Tensor, int, bool]:
            total, samples, connected = torch.zeros(self.size, dtype=self._wide, device=self.device), 0, False
            for piece in self._pieces():
                graph = self._evaluate(piece)
                if graph.loss.requires_grad:
                    connected = True
                    total += self._flat.join(torch.autograd.grad(graph.loss, graph.weights, allow_unused=True))
                samples += piece.samples
            return total, samples, connected

        return self._mean(summed).to(self.dtype)

    def _products(self, products: Callable[[Product], Tensor], k: int) -> tuple[Tensor, int, bool]:
        """Sum over this rank's samples, (k, n), their number, and whether any loss depends on the parameters."""
        total = torch.zeros(k, self.size, dtype=self._wide, device=self.device)
        here = self._state()
        if self._kept is not None and self._kept_at == here:
            assert self._samples is not None
            for map in self._kept:
                total += products(map)
            return total, self._samples, bool(self._kept)
        self._kept = None
        keep: list[Product] | None = [] if self._memory_bytes else None
        samples, connected, each = 0, False, 0.0
        for piece in self._pieces():
            saved = _Saved() if keep is not None and not each else None
            if saved is not None:
                with saved:
                    graph = self._evaluate(piece)
                    map = self._product(graph) if graph.loss.requires_grad else None
                each = max(saved.bytes, 1) / piece.samples
            else:
                graph = self._evaluate(piece)
                map = self._product(graph) if graph.loss.requires_grad else None
            samples += piece.samples
            if map is not None:
                connected = True
                total += products(map)
            if keep is not None:
                keep = None if each * samples > self._memory_bytes else keep + [map] * (map is not None)
        if keep is not None:
            for _ in self._pieces():  # they are never read again: are they the same at least twice?
                pass
            self._kept, self._kept_at, self._samples = keep, here, samples
        return total, samples, connected

    def _pieces(self) -> Iterator[Piece]:
        """One pass over this rank's micro-batches, compared with the pass before."""
        self._num_passes += 1
        sums: list[Tensor] = []
        with left_as_found(self.model):
            torch.manual_seed(self._num_passes)  # what draws from it to choose samples is found out
            random.seed(self._num_passes)
            np.random.seed(self._num_passes)
            self.model.train(self._training)
            yield from pieces_of(
                self._batches, micro_batch=self._micro_batch, device=self.device, seen=lambda s: sums.append(torch.stack(s).cpu())
            )
        found = [s.tolist() for s in sums]
        if self._checksums is not None and found != self._checksums:
            first = next(
                (i for i, (a, b) in enumerate(zip(self._checksums, found, strict=False)) if a != b), min(len(found), len(self._checksums))
            )
            raise UserError(
                f"batches: batch {first} is not the same as at the pass before ({len(found)} batches now, {len(self._checksums)} then); "
                "turn off shuffling and augmentation, or give a list of batches"
            )
        self._checksums = found

    def _evaluate(self, piece: Piece) -> Graph:
        """Outputs and loss of a micro-batch."""
        state = {name: p.detach() for name, p in self.model.named_parameters()}
        if torch.is_grad_enabled():
            for name in self._flat.names:
                state[name].requires_grad_()
        weights = [state[name] for name in self._flat.names]
        state |= {name: b.detach().clone() for name, b in self.model.named_buffers()}
        args = tuple(piece.inputs) if isinstance(piece.inputs, tuple | list) else () if isinstance(piece.inputs, dict) else (piece.inputs,)
        kwargs = piece.inputs if isinstance(piece.inputs, dict) else {}
        with drawing_from(piece.number, self.model), twice_differentiable(self.model):
            outputs = functional_call(self.model, state, args, kwargs)
            value = self._loss(outputs, piece.targets)
        return Graph(weights, outputs, _summed(value, piece))

    def _state(self) -> int:
        """Checksum of what the model computes with."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return hash(tuple(torch.stack([checksum(t).to(self.device) for t in tensors]).tolist()))

    def _mean(self, work: Callable[[], tuple[Tensor, int, bool]], same: Tensor | None = None) -> Tensor:
        """Sums over samples, joined over ranks, by the number of samples; an error of one rank is an error of all."""
        raised: Exception | None = None
        total, samples, connected = None, 0, False
        try:
            with torch.enable_grad():
                total, samples, connected = work()
        except Exception as error:
            if self._group is None:
                raise
            raised = error
        if self._group is not None:
            rank, world = dist.get_rank(self._group), dist.get_world_size(self._group)
            told = torch.zeros(world, 5, dtype=torch.int64, device=self.device)
            vectors = int(same) if same is not None else 0
            told[rank] = torch.tensor([samples, raised is not None, connected, vectors, self._state()])
            dist.all_reduce(told, group=self._group)
            of_all = told.tolist()
            if raised is not None:
                raise raised
            failed = [i for i, row in enumerate(of_all) if row[1]]
            if failed:
                raise Elsewhere(f"rank {failed[0]} of the group could not do its share: its own message says why")
            for column, what in ((3, "vectors differ"), (4, "the models' weights differ")):
                if len({row[column] for row in of_all}) > 1:
                    raise UserError(f"{what} between the ranks of the group: they must be equal everywhere; seed or broadcast them")
            samples, connected = sum(row[0] for row in of_all), any(row[2] for row in of_all)
        assert total is not None
        if not samples:
            raise UserError("batches: no samples; give at least one batch of one")
        if not connected:
            raise UserError(
                "loss: does not depend on the chosen parameters by any graph; return a tensor computed from the outputs, not detached"
            )
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        self._total_samples = samples
        mean = total / samples
        if not bool(torch.isfinite(mean).all()):
            raise NotFinite(
                "a derivative of the loss is not finite, though the loss is; look for square roots, powers and logarithms at zero"
            )
        return mean


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that graphs made within it hold."""

    def __init__(self) -> None:
        self.bytes = 0
        seen: set[int] = set()

        def pack(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return t

        super().__init__(pack, lambda t: t)


def _plain(model: nn.Module) -> nn.Module:
    """The module within what wraps it for training."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def _summed(value: Any, piece: Piece) -> Tensor:
    """The sum over samples of losses, one each or their mean."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape not in ((), (piece.samples,)):
        told = f"of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"loss of batch {piece.batch} is {told}: must be one a sample, ({piece.samples},), or their mean, ()")
    total = value * piece.samples if value.dim() == 0 else value.sum()
    if not bool(torch.isfinite(total)):
        raise NotFinite(f"loss of batch {piece.batch} is {float(total):g}: curvature needs a finite loss; look at the weights and the data")
    return total


def _differentiated(map: Product, vector: list[Tensor]) -> list[Tensor | None]:
    try:
        return map(vector)
    except RuntimeError as error:
        if _NOT_TWICE.search(str(error)):
            raise _not_twice(error) from error
        raise


def _not_twice(error: RuntimeError) -> UserError:
    return UserError(
        f"loss is not twice differentiable ({str(error).splitlines()[0][:200]}); use operations whose gradients have gradients"
    )
