r"""AdaScale: multiply the rate by what the larger batch really gains, and count progress by the same gain.

Paper:   Johnson et al. 2020, AdaScale SGD: A User-Friendly Algorithm for Distributed Training, arXiv:2007.05105, Algorithm 1, B.3.
Formula: with S shards of the base batch B0, so B = S B0; s^2 the trace of the covariance of a shard's gradient, and m^2 = |G|^2,
             r_t = (s^2 + m^2) / (s^2 / S + m^2)   in [1, S]
             rate_t = r_t lr(floor(tau_t)),   tau_{t+1} = tau_t + r_t,   stop when tau reaches the updates of the base run
         s^2 and m^2 are exponential means with theta = max(1 - S / 1000, 0), plain means for t < 1 / (1 - theta); r_0 = 1.
Units:   tau in updates of the base batch ("scale-invariant iterations"). s^2 = tr(S) / B0, where tr(S) is of one sample.
Differs: signal and noise are clipped at zero after averaging; the paper clips each estimate before, which biases the means upward.
         They come from groups of any number and size, so that S need be neither whole nor above 1: at S = 1, r is 1 exactly, and
         below it r is from S to 1. `theta` follows S when S changes. An update that was not measured leaves the means as they were.
Limits:  for SGD with a constant momentum, without warm-up. lr(.) is the schedule of the base batch: it, and the end of the run, go by
         tau and not by updates or samples.
"""

from collections.abc import Mapping
from typing import Any, Literal

from bigbatch.batching.decision import Proposal, UpdateMeasurement
from bigbatch.core.checks import check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count
from bigbatch.recipe.batch_rules import BatchRuleSection

PAPER = Paper(
    method="AdaScale",
    title="AdaScale SGD: A User-Friendly Algorithm for Distributed Training",
    authors="Johnson et al.",
    year=2020,
    arxiv="2007.05105",
    where="Algorithm 1, Appendix B.3",
    study="studies/adascale",
)


def gain(signal: float, noise: float, base_batch: float, global_batch: float) -> float:
    """What one update of B samples is worth in updates of B0 samples.

    Args:
        signal: |G|^2, averaged; clipped at 0 here.
        noise: tr(S), averaged; clipped at 0 here.
        base_batch: B0, samples.
        global_batch: B, samples.

    Returns:
        r = (tr(S) / B0 + |G|^2) / (tr(S) / B + |G|^2), between 1 and B / B0; 1 where there is neither signal nor noise.

    >>> gain(signal=1.0, noise=64.0, base_batch=32, global_batch=64)
    1.5
    """
    signal, noise = max(signal, 0.0), max(noise, 0.0)
    one, many = noise / base_batch + signal, noise / global_batch + signal
    return one / many if many > 0 else 1.0


def smoothing(scale: float, num_seen: int) -> float:
    """Weight of the newest value in the means: 1 - theta, or 1 / t while that is larger.

    Args:
        scale: S = B / B0.
        num_seen: t, values so far with the newest, from 1.

    Returns:
        max(min(S / 1000, 1), 1 / t), in (0, 1].

    >>> smoothing(10, 4), smoothing(10, 1000)
    (0.25, 0.01)
    """
    return max(min(scale / 1000, 1.0), 1 / num_seen)


class AdaScale:
    """The gain, and progress in updates of the base batch. A rule that never wishes for a batch: any other may choose it.

    Args:
        base_batch: B0, samples: the batch that the rate and its schedule were chosen for.

    Attributes:
        progress: tau, updates of the base batch that were made so far.
        num_seen: Updates in the means.
        num_skipped: Updates left out: not measured, or not finite.

    Raises:
        UserError: If `base_batch` is not positive.

    >>> adascale = AdaScale(base_batch=32)
    >>> adascale.advance(64)  # before anything was seen
    1.0
    >>> adascale.observe(UpdateMeasurement(global_batch=64, signal=1.0, noise=64.0))
    >>> adascale.advance(64), adascale.progress
    (1.5, 2.5)
    """

    def __init__(self, base_batch: int) -> None:
        check_positive("base_batch", base_batch, "give the batch that the rate was chosen for")
        self.base_batch = base_batch
        self.progress = 0.0
        self.num_seen = self.num_skipped = 0
        self._signal = self._noise = 0.0

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        if not seen.has_noise:
            self.num_skipped += 1
            return
        self.num_seen += 1
        weight = smoothing(seen.global_batch / self.base_batch, self.num_seen)
        self._signal += weight * (seen.signal - self._signal)
        self._noise += weight * (seen.noise - self._noise)

    def gain(self, global_batch: int) -> float:
        """r, what the base rate is multiplied by for an update of `global_batch` samples; 1 before anything was seen."""
        return gain(self._signal, self._noise, self.base_batch, global_batch) if self.num_seen else 1.0

    def advance(self, global_batch: int) -> float:
        """Count an update of `global_batch` samples that is about to be made; read the schedule at `progress` before.

        Returns:
            Its gain, which `progress` has grown by.
        """
        gained = self.gain(global_batch)
        self.progress += gained
        return gained

    def propose(self, global_batch: int) -> Proposal | None:  # noqa: ARG002  it takes any batch
        """None: AdaScale takes any batch."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        means = {"signal": self._signal, "noise": self._noise}
        return {**means, "num_seen": self.num_seen, "num_skipped": self.num_skipped, "progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._signal, self._noise, self.progress = state["signal"], state["noise"], state["progress"]
        self.num_seen, self.num_skipped = state["num_seen"], state["num_skipped"]


class AdaScaleSection(BatchRuleSection):
    """The batch is fixed; the rate is the schedule's at `base_batch` times a gain, and the schedule and the budget count by it."""

    kind: Literal["adascale"] = "adascale"
    base_batch: Count  # samples; the batch that the rate and the budget were tuned at

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a budget in updates."""
        if recipe.budget.updates is not None:
            raise ValueError(
                f"budget.updates = {recipe.budget.updates}: AdaScale counts updates of its base batch, and takes more or fewer of its own; "
                "give budget.epochs or budget.samples"
            )
        if (updates := getattr(recipe.schedule.warmup, "updates", None)) is not None:
            raise ValueError(
                f"schedule.warmup.updates = {updates}: AdaScale counts updates of its base batch, and takes more or fewer of its own; give "
                "schedule.warmup.epochs or schedule.warmup.samples"
            )


@BATCH_RULES.register("adascale", AdaScaleSection)
def build(rule: AdaScaleSection, *_: Any) -> AdaScale:
    """The recipe's rule."""
    return AdaScale(base_batch=rule.base_batch)
