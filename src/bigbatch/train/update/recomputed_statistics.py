"""Running statistics of batch norm for averaged weights: those that a pass over training samples gives, not those of each worker.

Where workers hold weights of their own, the mean of their running statistics belongs to no model that anyone evaluates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.layers.precise_statistics import recompute_statistics
from bigbatch.recipe import Recipe
from bigbatch.tasks.optional_parts import outputs_of
from bigbatch.tasks.task import Task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.micro_batch import micro_batches
from bigbatch.train.data.precision import DTYPES, autocast
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.data.shares import Share, share_of
from bigbatch.train.data.stream_reader import seed_of_order
from bigbatch.train.update.running_statistics import RunningStatistics

SAMPLES = 2048
"""Training samples of the pass, shared out among the workers; more where that is less than one normalisation group each."""


class RecomputedStatistics(RunningStatistics):
    """Computes running statistics anew whenever they are wanted, from the same samples each time.

    Args:
        model: As the worker trains it.
        ranks: The workers.
        recipe: For its batch, precision and seed.
        train: The training set.
        task: Calls the model.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, *, recipe: Recipe, train: Any, task: Task) -> None:
        super().__init__(model, ranks)
        self._model, self._recipe, self._train, self._task = model, recipe, train, task

    @contextmanager
    def during_update(self, share: Share, *, adversarial: bool = False) -> Iterator[None]:  # noqa: ARG002
        """What the passes of an update leave is not used."""
        yield

    @contextmanager
    def combined(self) -> Iterator[None]:
        """Statistics of the model as it now is."""
        if batch_norms(self._model):
            self._pass()
        yield

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: the next pass makes all of it."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Tensor]]) -> None:
        """Nothing was saved."""

    def _pass(self) -> None:
        recipe, ranks = self._recipe, self._ranks
        ghost = recipe.batch.ghost_batch
        group = recipe.batch.global_batch if ghost == "global" else ghost or 1
        num_samples = min(max(SAMPLES, group * ranks.world_size), recipe.num_train_samples)
        share = share_of(num_samples, ranks.rank, ranks.world_size, group)
        sizes = micro_batches(share.num_samples, self.micro_batch, group) if share.num_samples else []
        seed = seed_of_order(self._train, recipe.seed)
        indices = index_batches(seed, recipe.num_train_samples, share.start, iter(sizes))
        with autocast(recipe.precision, ranks.device):
            batches = load_micro_batches(self._train, indices, device=ranks.device, dtype=DTYPES[recipe.precision])
            forward = partial(outputs_of, self._task, self._model)
            recompute_statistics(self._model, (inputs for inputs, _ in batches), forward=forward, add_up=ranks.sum_)


def build_statistics(comm: Comm, recipe: Recipe, train: Any, task: Task) -> RunningStatistics:
    """Running statistics kept while training; computed anew where workers' weights go apart for the whole run."""
    if isinstance(comm, Gossip) and comm.weights_differ:
        return RecomputedStatistics(comm.model, comm.ranks, recipe=recipe, train=train, task=task)
    return RunningStatistics(comm.model, comm.ranks)
