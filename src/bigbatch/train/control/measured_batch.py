"""A batch that a rule sets from the noise of gradients."""

import json
from collections.abc import Mapping
from typing import Any

from bigbatch.batching.decision import BatchRule, Bounds, UpdateMeasurement, decide
from bigbatch.batching.smoothed import SmoothedNoise
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.train.control.batch_source import BatchDecision, BatchSource


class MeasuredBatch(BatchSource):
    """A rule is asked every so many updates.

    Args:
        rule: Sees every update on every worker, and is asked on the first: clocks differ between workers.
        bounds: Which batches are possible.
        global_batch: Of the first updates.
        every_updates: From one question to the next; None: once an epoch.
        epoch: Samples of the training set.
        ranks: The workers.

    Attributes:
        noise: Smoothed signal and noise of the updates so far.
    """

    def __init__(self, rule: BatchRule, bounds: Bounds, *, global_batch: int, every_updates: int | None, epoch: int, ranks: Ranks) -> None:
        super().__init__(global_batch)
        self.noise = SmoothedNoise()
        self._rule, self._bounds, self._ranks = rule, bounds, ranks
        self._every_updates, self._epoch = every_updates, epoch
        self._next = 0  # updates at which the rule is asked

    def is_due(self, clock: Clock) -> bool:
        """Whether the rule is asked before the next update."""
        return clock.updates > 0 and clock.updates >= self._next

    def decide(self, clock: Clock) -> BatchDecision | None:
        """What the rule asks for, within its bounds and limits of growth."""
        if not self.is_due(clock):
            self._next = self._next or self._interval()
            return None
        before = self.global_batch
        self.global_batch, reason = json.loads(self._ranks.run_on_rank_0(self._ask))
        self._next = clock.updates + self._interval()
        return BatchDecision(before, self.global_batch, reason) if reason else None

    def observe(self, seen: UpdateMeasurement) -> None:
        """For the rule, and for a rate that follows the gain."""
        self._rule.observe(seen)
        self.noise.observe(seen)

    def state_dict(self) -> dict[str, Any]:
        """The rule's, and where the batch stands."""
        rule = {"rule": self._rule.state_dict(), "smoothed": self.noise.state_dict()}
        return {**super().state_dict(), **rule, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        if "rule" in state:
            self._next = state["next"]
            self._rule.load_state_dict(state["rule"])
            self.noise.load_state_dict(state["smoothed"])

    def _ask(self) -> str:
        wish = self._rule.propose(self.global_batch)
        return json.dumps(decide(wish, self.global_batch, self._bounds) if wish is not None else (self.global_batch, ""))

    def _interval(self) -> int:
        return self._every_updates or max(1, self._epoch // self.global_batch)
