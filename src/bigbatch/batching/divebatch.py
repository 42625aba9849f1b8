r"""DiveBatch: grow the batch with the diversity of an epoch's gradients.

Paper:   Chen, Wang, Sundaram 2025, DiveBatch: Accelerating Model Training Through Gradient-Diversity Aware Batch Size Adaptation,
         arXiv:2509.16173.
Formula: with the gradients g_i of the n samples of an epoch, the diversity is D = sum_i |g_i|^2 / |sum_i g_i|^2, and after each epoch
             B = int(min(max(delta n D, B), B_max))
         n D is E|g_i|^2 / |E g_i|^2 = (|G|^2 + tr(S)) / |G|^2 = 1 + B_simple, for n well above B_simple.
Units:   samples.
Differs: n D comes from the plain means, over the updates since the last wish, of signal and noise, and not from sums of gradients
         over the epoch, in which the drift of the weights counts as diversity and n D can't exceed n. It is an epoch's where the rule
         is asked once an epoch; an epoch of fewer than 20 measured updates is joined to the next. The class leaves B_max to the
         caller's bounds; where the mean signal is not positive it wishes for infinity, as the authors' code takes B_max for NaN. Their
         factor for the rate is the caller's.
Limits:  only grows.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from bigbatch.batching.decision import Proposal, UpdateMeasurement
from bigbatch.batching.smoothed import MIN_UPDATES, noise_scale
from bigbatch.core.checks import check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Count, Positive
from bigbatch.recipe.batch_rules import Measured

PAPER = Paper(
    method="DiveBatch",
    title="DiveBatch: Accelerating Model Training Through Gradient-Diversity Aware Batch Size Adaptation",
    authors="Chen, Wang, Sundaram",
    year=2025,
    arxiv="2509.16173",
    where="the batch rule",
    study="studies/adaptive_batch",
)


def num_diverse(signal: float, noise: float) -> float:
    """The product n D = 1 + B_simple, samples: how many gradients of single samples are as good as different.

    Args:
        signal: |G|^2, averaged. Not above zero: no signal above the noise, infinity.
        noise: tr(S), averaged, 0 or more.

    >>> num_diverse(2.0, 8.0)
    5.0
    """
    return 1 + noise_scale(signal, noise)


def divebatch(global_batch: int, diverse: float, *, delta: float, largest: float = math.inf) -> float:
    """B = int(min(max(delta n D, B), B_max)).

    Args:
        global_batch: B so far, samples.
        diverse: n D, samples.
        delta: The batch per diverse gradient.
        largest: B_max, samples.

    Returns:
        A whole number; infinity where both `diverse` and `largest` are.

    >>> divebatch(128, 1000.0, delta=0.5, largest=2048), divebatch(128, 100.0, delta=0.5, largest=2048)
    (500, 128)
    """
    batch = min(max(delta * diverse, global_batch), largest)
    return math.floor(batch) if math.isfinite(batch) else batch


class DiveBatch:
    """Wishes for a fixed multiple of the diverse gradients of the updates since the last wish; only grows.

    Args:
        delta: Samples of the batch per diverse gradient, above 0; at 1 the batch is the noise scale (and one).

    Attributes:
        num_seen: Updates since the last wish.
        num_skipped: Updates left out, over the whole run: not measured, or not finite.

    Raises:
        UserError: If `delta` is not positive.
    """

    def __init__(self, *, delta: float) -> None:
        check_positive("delta", delta, "at 1 the batch is the noise scale")
        self.delta = delta
        self.num_seen = self.num_skipped = 0
        self._signal = self._noise = 0.0

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        if not seen.has_noise:
            self.num_skipped += 1
            return
        self._signal, self._noise, self.num_seen = self._signal + seen.signal, self._noise + seen.noise, self.num_seen + 1

    def propose(self, global_batch: int) -> Proposal | None:
        """The batch after an epoch; starts the next one. None, and the epoch goes on, before 20 updates."""
        if self.num_seen < MIN_UPDATES:
            return None
        diverse = num_diverse(self._signal / self.num_seen, max(self._noise, 0.0) / self.num_seen)
        reason = f"{diverse:,.1f} diverse gradients over {self.num_seen:,} updates"
        self._signal, self._noise, self.num_seen = 0.0, 0.0, 0
        return Proposal(divebatch(global_batch, diverse, delta=self.delta), reason)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        return {"num_seen": self.num_seen, "num_skipped": self.num_skipped, "signal": self._signal, "noise": self._noise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.num_seen, self.num_skipped = state["num_seen"], state["num_skipped"]
        self._signal, self._noise = state["signal"], state["noise"]


class DiveBatchSection(Measured):
    """`delta` times the diversity of the gradients, once an epoch; grows only."""

    kind: Literal["divebatch"] = "divebatch"
    delta: Positive = 1.0
    every_updates: Count | None = None  # type: ignore[assignment]  # None: an epoch


@BATCH_RULES.register("divebatch", DiveBatchSection)
def build(rule: DiveBatchSection, *_: Any) -> DiveBatch:
    """The recipe's rule."""
    return DiveBatch(delta=rule.delta)
