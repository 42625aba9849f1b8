"""How many backward passes an update takes, by a rule for the batch: all that a trainer can change whose passes have a fixed size."""

from collections.abc import Callable, Mapping
from typing import Any

from bigbatch.batching.decision import BatchRule, Bounds, Proposal, UpdateMeasurement, decide
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock

BatchOfClock = Callable[[Clock], float]
"""A batch known beforehand, in samples, from the clock."""


class Accumulation:
    """Asks a rule for the next batch, and says it in passes.

    Args:
        rule: Of `bigbatch.batching`: one that observes updates, such as `NoiseScaleRule`, whose wishes at most double or halve the batch;
            or a function of the clock, such as `lambda clock: grow.at(clock).global_batch` with `grow = AdaBatch(...)`, which is followed.
        largest: Most samples of an update, over all processes.
        every_updates: From one question to the next; a function of the clock is called after every update.

    Raises:
        UserError: If `largest` or `every_updates` is not positive, or `rule` is neither.

    >>> doubled = Accumulation(lambda clock: 64 if clock.samples < 128 else 128, largest=256)
    >>> [doubled.passes(Clock(samples, samples // 64), now=2, samples_of_a_pass=32) for samples in (64, 128)]
    [2, 4]
    """

    def __init__(self, rule: BatchRule | BatchOfClock, *, largest: int, every_updates: int = 20) -> None:
        check_positive("largest", largest)
        check_positive("every_updates", every_updates)
        self.largest, self.every_updates = largest, every_updates
        self._rule: BatchRule | None = None
        self._batch: BatchOfClock | None = None
        if callable(rule):
            self._batch = rule
        elif hasattr(rule, "propose"):
            self._rule = rule
        else:
            raise UserError(
                f"batch_rule = {rule!r}: must observe updates, as rules of bigbatch.batching do, or be a function of the clock, such as "
                "lambda clock: rule.at(clock).global_batch"
            )

    @property
    def measures(self) -> bool:
        """Whether the rule needs the noise of gradients."""
        return self._rule is not None

    def observe(self, seen: UpdateMeasurement) -> None:
        """Tell the rule of an update."""
        if self._rule is not None:
            self._rule.observe(seen)

    def passes(self, clock: Clock, *, now: int, samples_of_a_pass: int) -> int:
        """Passes of the next update.

        Args:
            clock: After the last update.
            now: Passes of the last update.
            samples_of_a_pass: Over all processes.

        Raises:
            UserError: If one pass has more samples than `largest`.
        """
        bounds = Bounds(samples_of_a_pass, self.largest, samples_of_a_pass)
        bounds.check()
        if self._batch is not None:
            return bounds.nearest(self._batch(clock)) // samples_of_a_pass
        assert self._rule is not None
        wish: Proposal | None = None
        if clock.updates % self.every_updates == 0:
            wish = self._rule.propose(now * samples_of_a_pass)
        return now if wish is None else decide(wish, now * samples_of_a_pass, bounds)[0] // samples_of_a_pass

    def state_dict(self) -> dict[str, Any]:
        """The rule's."""
        return self._rule.state_dict() if self._rule is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self._rule is not None and state:
            self._rule.load_state_dict(state)
