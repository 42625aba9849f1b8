"""Updates in which some samples are replaced by adversarial examples of themselves, as ABSA has it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from bigbatch.adversarial.fgsm import Attack, check_eps, fgsm_step
from bigbatch.comm.protocol import Comm
from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task
from bigbatch.train.data.input_range import Range
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.precision import DTYPES, autocast
from bigbatch.train.data.shares import Work
from bigbatch.train.update.batches import UpdateBatches
from bigbatch.train.update.gradient_accumulation import Pass
from bigbatch.train.update.running_statistics import RunningStatistics


class ReplacedSamples(UpdateBatches):
    """An update's micro-batches, its first samples replaced by adversarial examples of the weights as they are.

    They are made in evaluation mode, which leaves running statistics alone, and trained on among the others, through the same batch norms.
    Several workers add up those statistics before, once an update.

    Args:
        task: Its losses are attacked.
        recipe: Of the run.
        comm: Knows the model.
        eps: Size of the step, as a part of the range.
        within: Least and largest values of inputs.
    """

    def __init__(self, task: Task, recipe: Recipe, comm: Comm, *, eps: float, within: Range) -> None:
        super().__init__(recipe)
        self._model, self._ranks = comm.model, comm.ranks
        low, high = within
        step = eps * (high.double() - low.double())
        check_eps(step, low, high)
        eps_low_high = (value.to(self._ranks.device, DTYPES[recipe.precision]) for value in (step, low, high))
        self._step: dict[str, Tensor] = dict(zip(("eps", "low", "high"), eps_low_high, strict=True))
        self._attack = Attack(comm.model, task.losses, within=self._evaluating)

    def follow(self, share: Callable[[Clock], float], statistics: RunningStatistics) -> None:
        """Of an update's samples, the share that is replaced."""
        self._share, self._statistics = share, statistics

    def of_update(self, stream: Iterator[MicroBatch], clock: Clock, num_samples: int, work: Work) -> Iterable[MicroBatch | Pass]:
        """The first samples over all workers are replaced: the same ones, however many there are."""
        pieces = iter(super().of_update(stream, clock, num_samples, work))
        replaced = int(self._share(clock) * num_samples)
        if not replaced:
            return pieces
        passes, left = [Pass(*piece) for piece in itertools.islice(pieces, work.idle)], replaced - work.share.start
        with self._statistics.combined():
            while left > 0 and (piece := next(pieces, None)) is not None:
                clean = Pass(*piece)
                passes.append(clean._replace(inputs=self._with_first(clean.inputs, clean.targets, left, clock.updates)))
                left -= len(clean.targets)
        return itertools.chain(passes, pieces)

    def _with_first(self, inputs: Tensor, targets: Tensor, count: int, number: int) -> Tensor:
        first = inputs[:count]
        (direction,) = self._attack.directions([(first, targets[:count])], number)
        return torch.cat([fgsm_step(first, direction, **self._step), inputs[count:]])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self._model.training
        self._model.eval()
        with ExitStack() as stack:
            stack.callback(self._model.train, was_training)
            stack.enter_context(autocast(self._recipe.precision, self._ranks.device))
            yield
