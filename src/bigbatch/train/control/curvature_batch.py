"""Where ABSA meets the loop: the Hessian's top eigenvalue now and then, and what follows for the batch and the adversarial share.

The eigenvalue is computed in evaluation mode, on training samples as they are trained on (but for augmentation), the same each time: what
changes between two looks is the curvature, not the sample.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from bigbatch.batching.absa import ABSA
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.train.control.batch_source import BatchDecision, BatchSource
from bigbatch.train.measure.curvature_probe import CurvatureProbe, CurvatureReading
from bigbatch.train.state.record import Record


class CurvatureBatch(BatchSource):
    """ABSA sets the batch: looks at the curvature at the end of each period, as long as the batch can still grow.

    Args:
        rule: Judges what was seen; on the first worker, for all.
        probe: Looks.
        global_batch: Of the first period.
        period: Samples from one look to the next.
        total_samples: Of the run.
        ranks: The workers.
        record: Gets what was seen.
    """

    def __init__(
        self, rule: ABSA, probe: CurvatureProbe, *, global_batch: int, period: float, total_samples: int, ranks: Ranks, record: Record
    ) -> None:
        super().__init__(global_batch)
        self._rule, self._probe, self._period, self._total = rule, probe, period, total_samples
        self._ranks, self._record = ranks, record
        self._periods = 0  # that were over at the last look

    def is_due(self, clock: Clock) -> bool:
        """Whether a period is over."""
        return self._rule.watching and self._periods_until(clock) > self._periods

    def decide(self, clock: Clock) -> BatchDecision | None:
        """What came of a look, at the first update of each period but the first.

        Raises:
            Diverged: If a loss before was not finite.
        """
        over = self._periods_until(clock)
        since, self._periods = over - self._periods, over
        if not since or not self._rule.watching:
            return None
        self._record.flush()
        seen, before = self._probe.measure_if_finite(), self.global_batch
        standing, reason = json.loads(self._ranks.run_on_rank_0(lambda: self._judged(seen, since)))
        self._rule.load_state_dict(standing)
        self.global_batch = self._rule.global_batch
        if seen is not None:
            follows = {"global_batch": self.global_batch, "adversarial_share": self.adversarial_share(clock)}
            self._record.curvature(clock, {**seen.facts(), "decides": reason, **follows})
        return BatchDecision(before, self.global_batch, reason)

    def adversarial_share(self, clock: Clock) -> float:
        """The rule's."""
        return self._rule.share(clock.samples / self._total)

    @property
    def seconds(self) -> float:
        """Spent looking so far."""
        return self._probe.seconds

    def state_dict(self) -> dict[str, Any]:
        """The rule's, and what the next look starts from."""
        own = {"rule": self._rule.state_dict(), "periods": self._periods, "probe": self._probe.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        if "rule" in state:
            self._periods = state["periods"]
            self._rule.load_state_dict(state["rule"])
            self._probe.load_state_dict(state["probe"])

    def _periods_until(self, clock: Clock) -> int:
        return int(clock.samples / self._period + 1e-9)  # rounding of the period

    def _judged(self, seen: CurvatureReading | None, periods: int) -> str:
        reason = self._rule.measured(seen.top.values[0].item() if seen is not None else math.nan, periods)
        return json.dumps((self._rule.state_dict(), reason))
