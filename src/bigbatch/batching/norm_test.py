r"""Norm test: grow the batch when its gradient is noisier than it is long.

Paper:   Byrd, Chin, Nocedal, Wu 2011, Sample Size Selection in Optimization Methods for Machine Learning (Mathematical Programming
         134, 2012), https://doi.org/10.1007/s10107-012-0572-5. Lau et al. 2024 (arXiv:2412.21124) estimate the variance across ranks.
Formula: keep B while  tr(S) / B <= theta^2 |g_B|^2;  else  B = ceil(tr(S) / (theta^2 |g_B|^2)).
Units:   samples.
Differs: |g_B|^2 is |G|^2 + tr(S) / B, which is the measured norm of the batch gradient in each update, here from running means of
         |G|^2 and tr(S); so is tr(S), which comes from groups of samples and not from single ones. No correction for a finite
         training set. Where |g_B|^2 so made is not positive the wish is infinite.
Limits:  only grows. |g_B|^2 holds the noise itself, so the test is passed from B = B_simple (1 / theta^2 - 1) on, and at theta = 1 by
         every batch; with the true |G|^2 it would be B_simple / theta^2.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from bigbatch.batching.decision import Proposal
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import UserError
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe.batch_rules import CoScaling, Measured

PAPER = Paper(
    method="Norm test",
    title="Sample Size Selection in Optimization Methods for Machine Learning",
    authors="Byrd et al.",
    year=2011,
    arxiv="",
    where="the sample size test",
    link="https://doi.org/10.1007/s10107-012-0572-5",
    study="studies/adaptive_batch",
)


def required_batch(global_batch: float, *, noise: float, sq_norm: float, bound: float) -> float:
    """The batch that a test noise / B <= bound^2 |g|^2 asks for: B itself where it is passed.

    Args:
        global_batch: B, samples.
        noise: Variance over samples, summed over the coordinates that the test looks at, 0 or more.
        sq_norm: |g|^2 of the batch gradient.
        bound: theta or nu.

    Returns:
        B, or a whole number above it; infinity where no batch would pass.

    >>> required_batch(8, noise=8.0, sq_norm=2.0, bound=1.0), required_batch(8, noise=8.0, sq_norm=2.0, bound=0.5)
    (8, 16)
    """
    allowed = bound**2 * sq_norm
    if noise / global_batch <= allowed:
        return global_batch
    wanted = noise / allowed if allowed > 0 else math.inf
    return math.ceil(wanted) if math.isfinite(wanted) else wanted


def norm_test(global_batch: float, *, signal: float, noise: float, theta: float) -> float:
    """The batch that the norm test asks for: B itself where it is passed.

    Args:
        global_batch: B, samples.
        signal: |G|^2, averaged.
        noise: tr(S), averaged, 0 or more.
        theta: Largest ratio of the noise's length to the gradient's.

    Returns:
        B, or a whole number above it; infinity where |g_B|^2 is not positive and no batch would pass.

    >>> norm_test(8, signal=1.0, noise=8.0, theta=0.5)  # |g_B|^2 = 1 + 8/8; 8/8 > 0.25 * 2, so ceil(8 / 0.5)
    16
    """
    return required_batch(global_batch, noise=noise, sq_norm=signal + noise / global_batch, bound=theta)


class NormTest(SmoothedRule):
    """Wishes for the batch that passes the norm test; only grows.

    Args:
        theta: Largest ratio of the noise's length to the batch gradient's, above 0 and below 1. At 0.5 the batch grows to 3 B_simple,
            at 0.7 to about B_simple.
        decay: Of the running means of signal and noise.

    Raises:
        UserError: If `theta` or `decay` is out of range.
    """

    def __init__(self, *, theta: float, decay: float = 0.99) -> None:
        check_theta(theta)
        self.theta = theta
        super().__init__(decay)

    def propose(self, global_batch: int) -> Proposal | None:
        """The present batch, or the larger one that the test asks for; None before 20 updates."""
        if not self.smoothed.ready:
            return None
        wanted = norm_test(global_batch, signal=self.smoothed.signal, noise=self.smoothed.noise, theta=self.theta)
        passed = "passed" if wanted == global_batch else "failed"
        return Proposal(wanted, f"norm test {passed}, {self.smoothed.words}")


def check_theta(theta: float) -> None:
    """Refuse a theta at which no batch, or every batch, passes.

    Raises:
        UserError: If `theta` is not above 0 and below 1.

    >>> check_theta(1)
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: theta = 1: must lie above 0 and below 1, at 1 every batch passes; 0.5 to 0.9 is usual
    """
    if not 0 < theta < 1:
        raise UserError(f"theta = {theta}: must lie above 0 and below 1, at 1 every batch passes; 0.5 to 0.9 is usual")


class NormTestSection(Measured):
    """Grows until the noise of the gradient is at most `theta` times its norm."""

    kind: Literal["norm_test"] = "norm_test"
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.7  # at 0.7 the batch grows to about the noise scale
    lr: CoScaling = "none"


@BATCH_RULES.register("norm_test", NormTestSection)
def build(rule: NormTestSection, *_: Any) -> NormTest:
    """The recipe's rule."""
    return NormTest(theta=rule.theta)
