r"""Goodput: the batch at which samples per second, times what a sample is worth, is largest.

Paper:   Qiao et al. 2020, Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning, arXiv:2008.12260.
Formula: with the noise scale phi, the base batch M0 and a batch of M >= M0,
             efficiency(M) = (phi + M0) / (phi + M),    throughput(M) = M / T(M),    goodput = throughput * efficiency
         the best of 50 batches in geometric progression from M0 to the largest.
Units:   samples, seconds.
Differs: the seconds of an update are T(M) = alpha + beta M, on the machines at hand; the paper joins a line for the gradients and one
         for their exchange by a norm, and chooses the number of machines as well. alpha and beta are given, or fitted by least squares
         and kept from being negative, as the paper's are. phi is B_simple, not the preconditioned one. Until two sizes were timed the
         wish is twice the batch (half, where twice is out of bounds), to learn: reasoned, the paper too explores upwards from M0.
         The batch that is wished comes with the paper's rate only where the caller uses AdaScale (batching/adascale.py).
Limits:  an update that waits (first of a size, evaluation, a slow disk) counts as a slow one.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from bigbatch.batching.decision import Bounds, Proposal, UpdateMeasurement
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Positive
from bigbatch.recipe.batch_rules import CoScaling, Measured

PAPER = Paper(
    method="Goodput",
    title="Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning",
    authors="Qiao et al.",
    year=2020,
    arxiv="2008.12260",
    where="the goodput of a job",
    study="studies/adaptive_batch",
)
CANDIDATES = 50
"""Batches that are compared."""


class UpdateTime(NamedTuple):
    """Seconds of an update: alpha + beta times its samples."""

    alpha_s: float  # seconds of any update, >= 0
    beta_s_per_sample: float  # seconds that each sample adds, >= 0

    def seconds(self, global_batch: float) -> float:
        """Seconds of an update of `global_batch` samples.

        >>> UpdateTime(0.5, 0.25).seconds(8)
        2.5
        """
        return self.alpha_s + self.beta_s_per_sample * global_batch


def fit_update_time(timed: Iterable[tuple[int, int, float]]) -> UpdateTime:
    """Least squares over updates, with alpha and beta not below zero.

    Args:
        timed: (samples of an update, number of such updates, their seconds together), for at least two sizes.

    Returns:
        The line.

    >>> fit_update_time([(2, 1, 2.0), (4, 1, 3.0)])
    UpdateTime(alpha_s=1.0, beta_s_per_sample=0.5)
    """
    rows = list(timed)
    n = sum(k for _, k, _ in rows)
    mean_m, mean_t = sum(k * m for m, k, _ in rows) / n, sum(t for _, _, t in rows) / n
    beta = sum((m - mean_m) * (t - k * mean_t) for m, k, t in rows) / sum(k * (m - mean_m) ** 2 for m, k, _ in rows)
    if beta < 0:
        return UpdateTime(mean_t, 0.0)
    if mean_t < beta * mean_m:
        return UpdateTime(0.0, sum(m * t for m, _, t in rows) / sum(k * m * m for m, k, _ in rows))
    return UpdateTime(mean_t - beta * mean_m, beta)


def efficiency(noise_scale: float, base_batch: float, global_batch: float) -> float:
    """What a sample is worth in a batch of M, against one in a batch of M0: (phi + M0) / (phi + M).

    Args:
        noise_scale: phi, samples; infinity where there is no signal above the noise, and then every sample is worth as much.
        base_batch: M0, samples.
        global_batch: M, samples.

    Returns:
        A value in (0, 1] for M >= M0.

    >>> efficiency(100.0, 100, 300)
    0.5
    """
    return 1.0 if math.isinf(noise_scale) else (noise_scale + base_batch) / (noise_scale + global_batch)


def goodput(noise_scale: float, base_batch: float, global_batch: float, time: UpdateTime) -> float:
    """Samples per second, each counted at what it is worth at M0.

    >>> goodput(100.0, 100, 300, UpdateTime(1.0, 0.005))  # 300 samples in 2.5 s, worth half
    60.0
    """
    return global_batch / time.seconds(global_batch) * efficiency(noise_scale, base_batch, global_batch)


def best_batch(noise_scale: float, base_batch: int, largest: int, time: UpdateTime) -> float:
    """The candidate of the largest goodput, the smallest of equals; not rounded to whole samples.

    >>> best_batch(0.0, 64, 4096, UpdateTime(0.0, 1.0))  # no noise, no overhead: the base batch
    64.0
    """
    step = math.log(largest / base_batch) / (CANDIDATES - 1)
    candidates = [base_batch * math.exp(step * i) for i in range(CANDIDATES)]
    return max(candidates, key=lambda batch: goodput(noise_scale, base_batch, batch, time))


class Goodput(SmoothedRule):
    """Wishes for the batch of the largest goodput, up and down, never below the base batch.

    Args:
        base_batch: M0, samples: the batch that the rate was chosen for.
        largest: Largest batch that is compared, samples.
        alpha_s: Seconds of any update, with `beta_s_per_sample`; both left out: fitted to the updates seen.
        beta_s_per_sample: Seconds that each sample adds.
        decay: Of the running means of signal and noise.

    Raises:
        UserError: If an argument is out of range, or only one of the two times is given.
    """

    def __init__(
        self,
        *,
        base_batch: int,
        largest: int,
        alpha_s: float | None = None,
        beta_s_per_sample: float | None = None,
        decay: float = 0.99,
    ) -> None:
        check_positive("base_batch", base_batch)
        if largest < base_batch:
            raise UserError(f"largest = {largest}: must be at least base_batch = {base_batch}; give a larger one")
        self.base_batch, self.largest = base_batch, largest
        self.given = _given_time(alpha_s, beta_s_per_sample)
        super().__init__(decay)
        self._timed: dict[int, tuple[int, float]] = {}  # samples of an update: number of such updates, their seconds together

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        super().observe(seen)
        if math.isfinite(seen.seconds):
            number, seconds = self._timed.get(seen.global_batch, (0, 0.0))
            self._timed[seen.global_batch] = (number + 1, seconds + seen.seconds)

    @property
    def time(self) -> UpdateTime | None:
        """Seconds of an update: given, or fitted; None before two sizes were timed."""
        if self.given or len(self._timed) < 2:
            return self.given
        return fit_update_time((batch, number, seconds) for batch, (number, seconds) in self._timed.items())

    def propose(self, global_batch: int) -> Proposal | None:
        """The batch of the largest goodput; None before 20 updates."""
        if not self.smoothed.ready:
            return None
        if self.time is None:
            other = 2 * global_batch if 2 * global_batch <= self.largest else max(global_batch / 2, self.base_batch)
            return Proposal(other, "another size, to learn what an update costs")
        wanted = best_batch(self.smoothed.noise_scale, self.base_batch, self.largest, self.time)
        cost = f"{self.time.alpha_s:.3g} s an update and {self.time.beta_s_per_sample:.3g} s a sample"
        return Proposal(wanted, f"most goodput at {cost}, {self.smoothed.words}")

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        return {**super().state_dict(), "timed": [[batch, *timed] for batch, timed in self._timed.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self._timed = {int(batch): (int(number), float(seconds)) for batch, number, seconds in state["timed"]}


def _given_time(alpha_s: float | None, beta_s_per_sample: float | None) -> UpdateTime | None:
    if alpha_s is None and beta_s_per_sample is None:
        return None
    if alpha_s is None or beta_s_per_sample is None:
        raise UserError(
            f"alpha_s = {alpha_s}, beta_s_per_sample = {beta_s_per_sample}: the two go together; give both, or neither to fit them"
        )
    if not (alpha_s >= 0 and beta_s_per_sample >= 0 and alpha_s + beta_s_per_sample > 0):
        raise UserError(
            f"alpha_s = {alpha_s}, beta_s_per_sample = {beta_s_per_sample}: neither may be negative, nor both zero; give what was measured"
        )
    return UpdateTime(alpha_s, beta_s_per_sample)


class GoodputSection(Measured):
    """The batch with the most useful samples a second, by the time of an update and the noise scale.

    With times that are measured, on the first worker's clock, decisions are not those of another run: give both times for that.
    """

    kind: Literal["goodput"] = "goodput"
    alpha_s: Positive | None = None  # seconds of an update, of any size; measured if left out
    beta_s_per_sample: Positive | None = None
    lr: CoScaling = "gain"


@BATCH_RULES.register("goodput", GoodputSection)
def build(rule: GoodputSection, recipe: Recipe, bounds: Bounds) -> Goodput:
    """The recipe's rule."""
    return Goodput(
        base_batch=recipe.batch.global_batch,
        largest=bounds.largest,
        alpha_s=rule.alpha_s,
        beta_s_per_sample=rule.beta_s_per_sample,
    )
