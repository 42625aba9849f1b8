"""Where ABSA meets the loop: the Hessian's top eigenvalue now and then, and what follows for the batch, the rate and the adversarial share.

The eigenvalue is looked at in evaluation mode, on training samples as they are trained on (but for augmentation), the same each time: what
changes between two looks is the curvature, not the sample.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from bigbatch.batching.absa import ABSA
from bigbatch.core.clock import Clock
from bigbatch.recipe import batch_rules as sections
from bigbatch.scaling.linear import linear_lr
from bigbatch.scaling.sqrt import sqrt_lr
from bigbatch.train.control.batch_control import BatchControl, Decision
from bigbatch.train.measure.curvature_probe import CurvatureProbe, Look


class CurvatureBatch(BatchControl):
    """ABSA sets the batch: looks at the curvature at the end of each period, as long as the batch can still grow.

    Args:
        rule: Judges what was seen; on the first worker, for all.
        section: Of the recipe.
        probe: Looks.
        settings: As of `BatchControl`.
    """

    def __init__(self, rule: ABSA, section: sections.ABSA, probe: CurvatureProbe, **settings: Any) -> None:
        super().__init__(**settings)
        self._rule, self._section, self._probe = rule, section, probe
        self._periods = 0  # that were over when it last looked

    def before_update(self, clock: Clock) -> Decision | None:
        """What came of a look, at the first update of each period but the first.

        Raises:
            Diverged: If a loss before was not finite.
        """
        over = int(clock.samples / (self._section.every_epochs * self._recipe.num_train_samples) + 1e-9)  # rounding of the period
        since, self._periods = over - self._periods, over
        if not since or not self._rule.watching:
            return None
        self.take()
        self._record.flush()
        seen, before = self._probe.look_if_finite(), self.global_batch
        standing, reason = json.loads(self._ranks.run_on_rank_0(lambda: self._judged(seen, since)))
        self._rule.load_state_dict(standing)
        self.global_batch = self._rule.global_batch
        if seen is not None:
            follows = {"global_batch": self.global_batch, "adversarial_share": self.adversarial_share(clock)}
            self._record.curvature(clock, {**seen.facts(), "decides": reason, **follows})
        self.resumed()
        return Decision(before, self.global_batch, reason)

    def factor(self, clock: Clock) -> float:
        """The schedule's, times what goes with the batch."""
        times = self.global_batch / self._recipe.batch.global_batch
        coscale = {"none": 1.0, "linear": linear_lr(1.0, times), "sqrt": sqrt_lr(1.0, times)}[self._section.lr]
        return coscale * super().factor(clock)

    def adversarial_share(self, clock: Clock) -> float:
        """The rule's."""
        return self._rule.share(clock.samples / self._total)

    @property
    def curvature_s(self) -> float:
        """Seconds spent looking at curvature so far."""
        return super().curvature_s + self._probe.seconds

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

    def _judged(self, seen: Look | None, periods: int) -> str:
        reason = self._rule.measured(seen.top.values[0].item() if seen is not None else math.nan, periods)
        return json.dumps((self._rule.state_dict(), reason))
