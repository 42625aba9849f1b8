r"""SimiGrad: hold the cosine between the gradients of the batch's two halves at a target.

Paper:   Qin et al. 2021, SimiGrad: Fine-Grained Adaptive Batching for Large Scale Training using Gradient Similarity Measurement
         (NeurIPS 2021), https://openreview.net/forum?id=ZhF3IVPz-l5
Formula: c = cos(g of one half of the batch, g of the other half), and after each update, with the target c*,
             c < c*:  B = max(B + 1, int(1.1 B));     c > c*:  B = min(B - 1, int(0.9 B))
         Each half has |g|^2 = |G|^2 + 2 tr(S) / B and the two share G only, so
             c = |G|^2 / (|G|^2 + 2 tr(S) / B) = 1 / (1 + 2 B_simple / B),    and c = c* at   B = 2 B_simple c* / (1 - c*)
Units:   samples.
Differs: c comes from signal and noise, each averaged, not from two halves of one update. The class, asked now and then, wishes for the
         batch at which c = c*, where the paper's steps would lead if signal and noise stood still; `next_batch` is the paper's step,
         for a loop that takes one after every update. The paper's rate factor, sqrt(B / B_first), is the caller's.
Limits:  as c nears 1 for every batch beyond the noise scale, so does c* / (1 - c*) grow without bound: a target near 1 means the
         largest batch.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from bigbatch.batching.decision import Proposal
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import UserError
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe.batch_rules import Measured

PAPER = Paper(
    method="SimiGrad",
    title="SimiGrad: Fine-Grained Adaptive Batching for Large Scale Training using Gradient Similarity Measurement",
    authors="Qin et al.",
    year=2021,
    arxiv="",
    where="the batch rule",
    link="https://openreview.net/forum?id=ZhF3IVPz-l5",
    study="studies/adaptive_batch",
)


def similarity(global_batch: float, *, signal: float, noise: float) -> float:
    """Cosine between the mean gradients of two halves of a batch.

    Args:
        global_batch: B, samples of both halves together.
        signal: |G|^2, averaged, above 0.
        noise: tr(S), averaged, 0 or more.

    Returns:
        A value in (0, 1].

    >>> similarity(16, signal=1.0, noise=8.0)
    0.5
    """
    return signal / (signal + 2 * noise / global_batch)


def next_batch(global_batch: int, cosine: float, target: float) -> int:
    """The paper's step: a tenth up or down, at least one sample. May reach 0 from a batch of 1: the bounds are the caller's.

    >>> next_batch(100, 0.2, 0.5), next_batch(5, 0.2, 0.5), next_batch(100, 0.7, 0.5), next_batch(5, 0.7, 0.5)
    (110, 6, 90, 4)
    """
    if cosine < target:
        return max(global_batch + 1, int(1.1 * global_batch))
    if cosine > target:
        return min(global_batch - 1, int(0.9 * global_batch))
    return global_batch


def batch_at_similarity(noise_scale: float, target: float) -> float:
    """The batch whose halves have the target cosine: 2 B_simple c* / (1 - c*), samples.

    >>> batch_at_similarity(8.0, 0.5)
    16.0
    """
    return 2 * noise_scale * (target / (1 - target))


class SimiGrad(SmoothedRule):
    """Wishes for the batch whose halves have gradients of the target cosine, up and down.

    Args:
        target: c*, above 0 and below 1. At 1/3 the batch is the noise scale, at 0.5 twice that.
        decay: Of the running means of signal and noise.

    Raises:
        UserError: If `target` or `decay` is out of range.
    """

    def __init__(self, *, target: float, decay: float = 0.99) -> None:
        if not 0 < target < 1:
            raise UserError(f"target = {target}: a cosine must lie above 0 and below 1; at 1/3 the batch is the noise scale")
        self.target = target
        super().__init__(decay)

    def propose(self, global_batch: int) -> Proposal | None:
        """The batch at the target cosine; None before 20 updates."""
        if not self.smoothed.ready:
            return None
        signal, noise = self.smoothed.signal, self.smoothed.noise
        if signal <= 0:
            return Proposal(math.inf, self.smoothed.words)
        cosine = similarity(global_batch, signal=signal, noise=noise)
        return Proposal(batch_at_similarity(noise / signal, self.target), f"halves at cosine {cosine:.3f}, {self.smoothed.words}")


class SimiGradSection(Measured):
    """Keeps the cosine between the gradients of two halves of the batch at `target`."""

    kind: Literal["simigrad"] = "simigrad"
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5


@BATCH_RULES.register("simigrad", SimiGradSection)
def build(rule: SimiGradSection, *_: Any) -> SimiGrad:
    """The recipe's rule."""
    return SimiGrad(target=rule.target)
