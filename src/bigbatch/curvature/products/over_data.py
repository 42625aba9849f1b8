"""What operators over a data set share: evaluating micro-batches on stand-ins, the mean over samples, and graphs that are kept.

Products are second backward passes through graphs that are kept where memory allows: of the ways that torch has, the fastest or within a
fifth of it on every model that was measured (`benchmarks/hessian_products.py`). Forward over reverse has no rule for recurrent layers;
tracing it once (`torch.func.linearize`) takes as long as tens of products; and several vectors under `vmap` are slower on a CPU than one by
one, but for small perceptrons.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.checksum import checksum
from bigbatch.curvature.products.evaluated import Graph, Loss, evaluated, refuse_sums, summed
from bigbatch.curvature.products.fixed_batches import FixedBatches, Piece
from bigbatch.curvature.products.flat import Flat
from bigbatch.curvature.products.operator import as_rows
from bigbatch.curvature.products.over_ranks import Share, mean_over_ranks
from bigbatch.curvature.products.plain_mean import not_plain
from bigbatch.curvature.products.preserve_state import preserve_state
from bigbatch.curvature.products.probe import Evaluation, Evaluator, check_products, check_symmetry
from bigbatch.curvature.second_derivatives.twice_differentiable import (
    Times,
    errors_told,
    kernels_with_second_derivatives,
    refuse_once_differentiable,
)


class Linearised(NamedTuple):
    """A micro-batch: the map that is kept, and what came along with it."""

    times: Times
    gradient: list[Tensor | None] | None  # of the summed loss; None if it is not needed for the map


class Sums(NamedTuple):
    """Over all of this worker's samples."""

    samples: int
    connected: bool  # whether any loss depends on the parameters
    loss_and_gradient: Tensor  # shape (1 + n,); of the loss alone, if gradients do not come along


class Kept(NamedTuple):
    """Graphs of all of this worker's samples."""

    times: list[Times]
    sums: Sums
    state: int  # checksum of what the model computed with


class OverData(ABC):
    """An operator that is a mean over samples; `Hessian` says what its arguments are.

    Attributes:
        size: Number of chosen parameters, n.
        dtype: Of vectors and products, the parameters'.
        device: Of vectors and products, the parameters'.
    """

    _gradient_comes_along = False
    """With the graphs of products."""

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
        refuse_sums(loss)
        self.model = _unwrapped(model)
        self._loss, self._group, self._training, self._memory_bytes = loss, group, training, memory_bytes
        self._flat = Flat(self.model, parameters)
        self.size, self.dtype, self.device = self._flat.size, self._flat.dtype, self._flat.device
        self._batches = FixedBatches(batches, micro_batch=micro_batch, device=self.device)
        self._kept: Kept | None = None
        self._samples: int | None = None
        self._doubt: str | None = None  # why the loss of a micro-batch can't be pooled with others
        self._probed = False
        self._pooled = False  # whether it is, though there is one here

    @abstractmethod
    def _linearised(self, graph: Graph) -> Linearised | None:
        """The sum of the operator over a micro-batch; None if the loss does not depend on the parameters."""

    @staticmethod
    @abstractmethod
    def _by_difference(at: Evaluator, v: list[Tensor], h: float) -> list[Tensor]:
        """A product of few samples from first derivatives alone."""

    def _product_of_few(self, few: Evaluation, v: list[Tensor]) -> list[Tensor]:
        made = self._linearised(Graph(*few))
        products = [None] * len(v) if made is None else made.times(v)
        return [torch.zeros_like(part) if p is None else p for p, part in zip(products, v, strict=True)]

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """Products with one vector (n,), or with k rows (k, n), of the same shape.

        With a group, every worker calls it with the same vectors and gets the same products.

        Raises:
            UserError: If the vectors do not fit; the batches are empty, ill-formed or change between passes; the loss is not finite or
                can't be differentiated twice; or the workers' vectors or weights differ.
            Elsewhere: If that is so on another worker.
        """

        def work() -> Share:
            rows = as_rows(self, vectors)
            split = [self._flat.split(row) for row in rows]
            total = self._zeros(*rows.shape)
            state = self._checksum()

            def add(times: Times) -> None:
                for row, vector in zip(total, split, strict=True):
                    row += self._flat.join(times(vector))

            with errors_told():
                sums = self._for_each(add, state)
            alike = {"vectors": int(checksum(rows)), "the models' weights": state} if self._group else {}
            return Share(total, sums.samples, sums.connected, alike)

        return self._mean(work).to(self.dtype).view(vectors.shape)

    @property
    def samples(self) -> int:
        """Number of samples that the mean is over, of all workers together."""
        if self._samples is None:
            with self._pass():
                self._mean(lambda: Share(self._zeros(), sum(piece.samples for piece in self._batches)))
        assert self._samples is not None
        return self._samples

    def loss(self) -> float:
        """The mean loss over all samples.

        Raises:
            UserError: As for products.
        """
        return self.loss_and_score(None)[0]

    def loss_and_score(self, score: Loss | None) -> tuple[float, float]:
        """The mean loss, and the mean of another function of outputs and targets, such as 1 for a right answer; 0 without one.

        Args:
            score: Is called once a micro-batch and gives n numbers or their mean, as the loss does; None for the loss alone.

        Raises:
            UserError: As for products.
        """

        def work() -> Share:
            total, samples = self._zeros(2), 0
            with torch.no_grad(), self._pass() as weights:
                for piece in self._batches:
                    graph = self._evaluate(piece, weights)
                    total[0] += graph.loss
                    if score is not None:
                        scored = score(graph.outputs, piece.targets)
                        total[1] += summed(scored.to(total.dtype) if isinstance(scored, Tensor) else scored, piece, "score")
                    samples += piece.samples
            return Share(total, samples)

        loss, mean_score = self._mean(work).tolist()
        return loss, mean_score

    def gradient(self) -> Tensor:
        """The gradient of the mean loss towards the chosen parameters, shape (n,).

        Raises:
            UserError: As for products.
        """
        return self.loss_and_gradient()[1]

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The mean loss, and its gradient, (n,), by one pass over the data at most.

        A `Hessian` with memory for graphs keeps those of this pass, so that products at these weights need none of their own.

        Raises:
            UserError: As for products.
        """

        def work() -> Share:
            if self._gradient_comes_along and self._memory_bytes > 0:
                with errors_told():
                    sums = self._for_each(lambda _: None, self._checksum())
                return Share(sums.loss_and_gradient.clone(), sums.samples, sums.connected)
            total, samples, connected = self._zeros(1 + self.size), 0, False
            with self._pass() as weights:
                for piece in self._batches:
                    graph = self._evaluate(piece, weights)
                    total[0] += graph.loss.detach()
                    if graph.loss.requires_grad:
                        total[1:] += self._flat.join(torch.autograd.grad(graph.loss, graph.weights, allow_unused=True))
                        connected = True
                    samples += piece.samples
            return Share(total, samples, connected)

        mean = self._mean(work)
        return float(mean[0]), mean[1:].to(self.dtype)

    def _for_each(self, use: Callable[[Times], None], state: int) -> Sums:
        """Call `use` for every micro-batch.

        The first call keeps the graphs, if they fit into `memory_bytes`, and then reads the batches once more to compare; calls at the same
        weights use them. That takes out a forward and a backward pass, about half the time of a product.
        """
        if self._kept is not None and self._kept.state == state:
            for times in self._kept.times:
                use(times)
            return self._kept.sums
        self._kept = None
        keep, sample_bytes, samples, connected = self._memory_bytes > 0, 0.0, 0, False
        total = self._zeros(1 + self.size * self._gradient_comes_along)
        graphs: list[Times] = []
        with self._pass() as weights:
            saved = _Saved(weights)
            for piece in self._batches:
                with saved.counted() if keep and not samples else nullcontext():
                    graph = self._evaluate(piece, weights)
                    made = self._linearised(graph)
                if not samples:
                    refuse_once_differentiable(graph.loss)
                    if made is not None and not self._probed:
                        self._probe(piece, weights, made)
                        self._probed = True
                samples += piece.samples
                total[0] += graph.loss.detach()
                sample_bytes = sample_bytes or saved.bytes / piece.samples
                keep = keep and sample_bytes * samples <= self._memory_bytes
                if made is not None:
                    connected = True
                    use(made.times)
                    if made.gradient is not None:
                        total[1:] += self._flat.join(made.gradient)
                    graphs = [*graphs, made.times] if keep else []
                del graph, made  # one micro-batch in memory at a time
            if keep:
                for _ in self._batches:
                    pass
                self._kept = Kept(graphs, Sums(samples, connected, total), state)
        return Sums(samples, connected, total)

    def _evaluate(self, piece: Piece, weights: dict[str, Tensor]) -> Graph:
        graph = evaluated(self.model, self._loss, piece, weights, self._flat.names)
        self._doubt = graph.doubt or (self._doubt if piece.number else None)
        if self._doubt is not None and (piece.number or self._pooled or self._group is not None):
            raise not_plain(self._doubt)
        return graph

    def _probe(self, piece: Piece, weights: dict[str, Tensor], made: Linearised) -> None:
        """Look whether products are right, on few samples; see probe.py."""
        try:
            at = Evaluator(self.model, self._loss, piece, weights, self._flat.names)
            at()
        except Exception:  # not a model for float64
            check_symmetry(made.times, [weights[name] for name in self._flat.names])
        else:
            try:
                check_products(at, self._product_of_few, self._by_difference)
            except RuntimeError as error:  # of what a backward pass computes anew, with the module's own weights in place of these
                if "dtype" not in (why := str(error).partition("\n")[0]):
                    raise
                raise UserError(
                    f"second derivative: the gradient at other weights fails ({why[:150]}); turn activation checkpointing off"
                ) from error

    @contextmanager
    def _pass(self) -> Iterator[dict[str, Tensor]]:
        """The model in evaluation (or training) mode, and as before afterwards; copies of its parameters, to be used instead of them."""
        weights = {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in self.model.named_parameters()}
        for name in self._flat.names:
            weights[name].requires_grad_()
        with preserve_state(self.model):
            self.model.train(self._training)
            yield weights

    def _mean(self, work: Callable[[], Share]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), kernels_with_second_derivatives(self.model):
            mean = mean_over_ranks(work, self._group, self.device)
        self._samples = mean.samples
        return mean.value

    def _checksum(self) -> int:
        """Of all that the model computes with."""
        return int(checksum(*self.model.parameters(), *self.model.buffers()))

    def _zeros(self, *shape: int) -> Tensor:
        """Sums over samples are in float64, where the device has it."""
        return torch.zeros(shape, dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device)


class _Saved:
    """Counts the bytes that graphs hold besides the parameters."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.bytes = 0
        self._seen = {p.data_ptr() for p in weights.values()}

    def counted(self) -> AbstractContextManager[None]:
        """Counts graphs that are made within it."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda t: t)

    def _count(self, t: Tensor) -> Tensor:
        if t.data_ptr() not in self._seen:
            self._seen.add(t.data_ptr())
            self.bytes += t.nbytes
        return t


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module within what wraps it for speed or for training."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model
