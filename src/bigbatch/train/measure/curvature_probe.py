"""Curvature of the training loss at the weights that a run has now: the top of the Hessian's spectrum, and its trace.

Looking disturbs nothing: weights, running statistics, gradients and random states are left as they were, to the last bit. What is looked
at are the weights that an evaluation would get, in evaluation mode, on samples that are the same each time; of several workers each takes
its share of them. Plain float32 (or float64), also where the run trains in bfloat16.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from bigbatch.comm.protocol import Comm
from bigbatch.core.checks import Elsewhere, NotFinite, UserError
from bigbatch.curvature import Eigenpairs, Hessian, TraceEstimate, top_eigenvalues, trace
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.data.shares import share_of
from bigbatch.train.data.stream_reader import seed_of_order
from bigbatch.train.measure.task_loss import TaskLoss
from bigbatch.train.update.running_statistics import RunningStatistics

FRESH = 3.0
"""Length of the random part of a start, against that of the last look's eigenvectors. A start of those alone ends after two or three
products and never sees an eigenvalue that has overtaken them; this one costs hardly more, and still saves one product in five."""


class CurvatureReading(NamedTuple):
    """What one look saw."""

    top: Eigenpairs  # largest first
    trace: TraceEstimate | None
    seconds: float  # that it took

    def facts(self) -> dict[str, Any]:
        """Plain values for a record."""
        top = {"eigenvalues": self.top.values.tolist(), "residuals": self.top.residuals.tolist(), "converged": self.top.converged.tolist()}
        facts: dict[str, Any] = {**top, "products": self.top.products, "seconds": round(self.seconds, 4)}
        if self.trace is not None:
            facts["trace"] = {name: getattr(self.trace, name) for name in ("value", "low", "high", "converged")}
            facts["products"] += self.trace.products
        return facts


class CurvatureProbe:
    """Looks at a run's curvature whenever it is asked; each look starts from the eigenvectors of the one before.

    Args:
        task: Gives the losses.
        recipe: Of the run.
        comm: Of the workers; knows the model.
        optimizer: Of the run; averaged with the weights where workers have their own.
        train: The training set.
        statistics: Of batch norm.
        micro_batch: Most samples in one pass.
        samples: So many of the training set, the first of the run's order; all of a smaller one.
        eigenvalues: How many, from the largest.
        tolerance: Residuals |Hv - lambda v| / |lambda| at which they are done.
        trace_tolerance: Relative standard error of the trace; None leaves the trace out.

    Attributes:
        seconds: Spent looking so far, over all sessions of the run.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        comm: Comm,
        optimizer: Optimizer,
        train: Dataset[Any],
        statistics: RunningStatistics,
        *,
        micro_batch: int,
        samples: int = 512,
        eigenvalues: int = 1,
        tolerance: float = 1e-3,
        trace_tolerance: float | None = None,
    ) -> None:
        self._task, self._recipe, self._comm, self._optimizer, self._statistics = task, recipe, comm, optimizer, statistics
        self._train, self._micro_batch = train, micro_batch
        self._samples = min(samples, recipe.num_train_samples)
        self._eigenvalues, self._tolerance, self._trace_tolerance = eigenvalues, tolerance, trace_tolerance
        self._loss: TaskLoss | None = None
        self._start: Tensor | None = None
        self.seconds = 0.0

    def measure(self) -> CurvatureReading:
        """Of the weights as they now are. Called by every worker; the same on all. Syncs with the device.

        Raises:
            UserError: If the loss is not finite, or can't be differentiated twice.
        """
        began, ranks = time.perf_counter(), self._comm.ranks
        if self._loss is None:
            self._loss = self._load()
        loss = self._loss
        with self._as_evaluated() as model:
            group = (ranks.group or dist.group.WORLD) if ranks.world_size > 1 else None
            hessian = Hessian(loss.module(model), loss.losses, loss.batches, group=group)
            top = top_eigenvalues(hessian, self._eigenvalues, tolerance=self._tolerance, seed=self._recipe.seed, start=self._start)
            traced = None
            if self._trace_tolerance is not None:
                traced = trace(hessian, tolerance=self._trace_tolerance, seed=self._recipe.seed)
        self._start = refreshed(top.vectors, seed=self._recipe.seed)
        seconds = float(ranks.run_on_rank_0(lambda: json.dumps(time.perf_counter() - began)))
        self.seconds += seconds
        return CurvatureReading(top, traced, seconds)

    def measure_if_finite(self) -> CurvatureReading | None:
        """The same, or None on every worker where the loss or a derivative is not finite.

        Raises:
            UserError: On every worker, if the loss can't be differentiated twice.
        """

        def here() -> CurvatureReading | None:
            try:
                return self.measure()
            except (NotFinite, Elsewhere):
                return None

        return self._comm.ranks.run_on_all_ranks(here)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to see the same."""
        return {"start": self._start, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning."""
        start = state.get("start")
        if start is not None and (not isinstance(start, Tensor) or start.layout != torch.strided or start.dim() not in (1, 2)):
            raise UserError(f"start = {start!r:.60}: must be vectors, one a row")
        self._start, self.seconds = start, state.get("seconds", 0.0)

    def _load(self) -> TaskLoss:
        """Of this worker's share of the samples."""
        recipe, ranks = self._recipe, self._comm.ranks
        share = share_of(self._samples, ranks.rank, ranks.world_size, None)
        whole, rest = divmod(share.num_samples, self._micro_batch)
        sizes = [self._micro_batch] * whole + [rest] * (rest > 0)
        seed = seed_of_order(self._train, recipe.seed)
        indices = index_batches(seed, recipe.num_train_samples, share.start, iter(sizes))
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed
            torch.manual_seed(recipe.seed)
            pairs = load_micro_batches(self._train, indices, device=ranks.device, dtype=DTYPES[recipe.precision])
            return TaskLoss(self._task, pairs, sizes, ranks=ranks)

    @contextmanager
    def _as_evaluated(self) -> Iterator[nn.Module]:
        """Weights and running statistics of all workers for a while; each worker's own afterwards, unrounded."""
        model = self._comm.model
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            with self._comm.averaged_weights(self._optimizer), self._statistics.combined():
                yield model
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def refreshed(vectors: Tensor, *, seed: int) -> Tensor:
    """A start for the next look: the sum of the last one's eigenvectors, and a random part besides.

    Args:
        vectors: Orthonormal, shape (k, n).
        seed: Of the random part.

    Returns:
        Shape (n,).

    >>> start = refreshed(torch.eye(4)[:1], seed=0)
    >>> start.shape, bool((start != 0).all())
    (torch.Size([4]), True)
    """
    fresh = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(seed)).to(vectors)
    start: Tensor = vectors.sum(0) + FRESH * math.sqrt(len(vectors)) * fresh / fresh.norm()
    return start
