"""What an update's passes are: its micro-batches as they are read, with multiplicative noise where the recipe adds it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from bigbatch.core.clock import Clock
from bigbatch.noise.multiplicative_noise import noise_factors
from bigbatch.recipe import Recipe
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.shares import Work
from bigbatch.train.update.gradient_accumulation import Pass
from bigbatch.train.update.running_statistics import RunningStatistics


class UpdateBatches:
    """Of one run, on one worker; `bigbatch.train.adversarial.training` and `replaced_samples` have other kinds.

    Args:
        recipe: Of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def begin(self, clock: Clock, work: Callable[[int], Work]) -> Clock:  # noqa: ARG002
        """A run begins, or goes on, at `clock`.

        Args:
            clock: Where it stands.
            work: This worker's, of an update of so many samples.

        Returns:
            Where its stream is to begin: behind what is held.
        """
        return clock

    def follow(self, share: Callable[[Clock], float], statistics: RunningStatistics) -> None:
        """What sets the batch may set the part of it that is adversarial too.

        Args:
            share: Of an update's samples, by the clock before it.
            statistics: Of batch norm.
        """

    def share(self, clock: Clock) -> float:  # noqa: ARG002
        """Of the adversarial loss in the next update."""
        return 0.0

    def of_update(self, stream: Iterator[MicroBatch], clock: Clock, num_samples: int, work: Work) -> Iterable[MicroBatch | Pass]:
        """The passes of the next update.

        Args:
            stream: Of the run.
            clock: Before the update.
            num_samples: Of the update.
            work: What this worker does in it.
        """
        pieces, noise_batch = zip(itertools.islice(stream, len(work.sizes)), work.sizes, strict=False), self._recipe.batch.noise_batch
        if noise_batch is None:
            return (Pass(inputs, targets, num_samples=n) for (inputs, targets), n in pieces)
        share = work.share
        weights = noise_factors(num_samples, noise_batch, seed=self._recipe.seed, start=clock.samples)[share.start :][: share.num_samples]
        of_pieces = [1.0] * work.idle + list(torch.split(weights, work.sizes[work.idle :]))
        return (Pass(inputs, targets, w, num_samples=n) for ((inputs, targets), n), w in zip(pieces, of_pieces, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What this worker holds."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Take up what the workers that saved held."""
