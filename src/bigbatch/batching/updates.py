"""A data loader's micro-batches gathered into updates, whose batch may change between any two: batch ramps in a loop of your own."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bigbatch.batching.decision import BatchRule, Bounds, decide
from bigbatch.core.checks import UserError, check_positive


class Update(NamedTuple):
    """What one update is made of.

    Attributes:
        micro_batches: As the loader gave them, each for one forward and backward pass.
        num_samples: Of all workers: what the sum of the losses is divided by, so that ragged micro-batches weigh right.
    """

    micro_batches: list[Any]
    num_samples: int

    def __iter__(self) -> Iterator[Any]:
        """The micro-batches."""
        return iter(self.micro_batches)


class Updates:
    """An epoch of a loader as updates of `global_batch` samples; set it at any time, and the next update has it.

    The loader's batch is the micro-batch, and the global batch is made of whole ones: rounded to the nearest multiple, at least one. What
    the loader draws, and in which order, does not depend on the batch: each sample is seen once an epoch, whatever the batch does, also
    where a DataLoader's worker processes read ahead.

    Args:
        loader: A torch DataLoader, or anything that can be iterated again for each epoch. Of several workers, each has its own share.
        global_batch: Samples of an update over all workers.
        world_size: Workers; all have as many samples.
        drop_last: Whether an update that the epoch's end leaves incomplete is dropped; else it is a smaller one.

    Raises:
        UserError: If a number is not positive, or a micro-batch has no length.

    >>> updates = Updates([[0, 1], [2, 3], [4, 5], [6, 7], [8]], global_batch=2)
    >>> for update in updates:
    ...     print(update.micro_batches, update.num_samples)
    ...     updates.global_batch *= 2
    [[0, 1]] 2
    [[2, 3], [4, 5]] 4
    [[6, 7], [8]] 3
    """

    def __init__(self, loader: Iterable[Any], *, global_batch: int, world_size: int = 1, drop_last: bool = False) -> None:
        check_positive("world_size", world_size)
        self.loader, self.world_size, self.drop_last = loader, world_size, drop_last
        self.global_batch = global_batch

    @property
    def global_batch(self) -> int:
        """Samples of the next update over all workers, before it is rounded to whole micro-batches."""
        return self._global_batch

    @global_batch.setter
    def global_batch(self, samples: int) -> None:
        check_positive("global_batch", samples)
        self._global_batch = samples

    def __iter__(self) -> Iterator[Update]:
        """The updates of an epoch."""
        parts: list[Any] = []
        samples, micro_batch = 0, 0
        for part in self.loader:
            size = num_samples(part)
            micro_batch = micro_batch or size  # the first: only the last of an epoch may be smaller
            parts.append(part)
            samples += size
            if len(parts) >= max(1, round(self._global_batch / (self.world_size * micro_batch))):
                yield Update(parts, samples * self.world_size)
                parts, samples = [], 0
        if parts and not self.drop_last:
            yield Update(parts, samples * self.world_size)

    def follow(self, rule: BatchRule, bounds: Bounds) -> str | None:
        """Let a rule decide on the batch of the next update.

        Args:
            rule: Of `bigbatch.batching`, which has observed the updates so far.
            bounds: Which batches are possible.

        Returns:
            The reason of the decision; None while the rule can't tell.

        Raises:
            UserError: If the rule is a schedule, which proposes nothing.
        """
        if not hasattr(rule, "propose"):
            name = type(rule).__name__
            raise UserError(
                f"{name}: is known beforehand and proposes nothing; set global_batch = rule.at(...).global_batch before each update"
            )
        if (wish := rule.propose(self.global_batch)) is None:
            return None
        self.global_batch, reason = decide(wish, self.global_batch, bounds)
        return reason


def _is_structure(value: Any) -> bool:
    """Whether tensors of all samples lie within: a mapping, a tuple, or what a DataLoader makes of a sample that is one, a list.

    A list of plain values, of tuples, or of mappings with the same keys is one of samples.
    """
    if not isinstance(value, list):
        return isinstance(value, Mapping | tuple)
    first = value[0] if value else None
    if isinstance(first, Mapping):
        return any(not isinstance(other, Mapping) or other.keys() != first.keys() for other in value)
    return bool(getattr(first, "shape", ())) or (isinstance(first, list) and any(getattr(part, "shape", ()) for part in first))


def num_samples(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor.

    >>> num_samples(([1, 2, 3], "labels")), num_samples({"ids": [[1], [2]]})
    (3, 2)
    """
    part = batch
    while _is_structure(part):
        part = next(iter(part.values() if isinstance(part, Mapping) else part), None)
    try:
        return len(part)
    except TypeError:
        raise UserError(
            f"a batch of {type(batch).__name__}: has no length; give a loader of tensors, or of mappings or tuples of them"
        ) from None
