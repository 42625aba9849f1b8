r"""Inner product test: grow the batch when its gradient may not point downhill.

Paper:   Bollapragada, Byrd, Nocedal 2017, Adaptive Sampling Strategies for Stochastic Optimization, arXiv:1710.11258.
Formula: with g the mean gradient of a batch of B, g_i of its samples, the test and its augmentation are
             inner product   Var(g_i . g) / B <= theta^2 |g|^4
             orthogonality   Var(g_i - (g_i . g / |g|^2) g) / B <= nu^2 |g|^2
         keep B while both hold; else the larger of the two batches at which they would, rounded up.
         Along a unit vector d/|d| in place of g/|g|, and with S the covariance of g_i, these are
             d'Sd / |d|^2 / B <= theta^2 |g|^2,   (tr(S) - d'Sd / |d|^2) / B <= nu^2 |g|^2
Units:   samples.
Differs: the direction d is the mean gradient of the update before, which the samples of this update did not make. |g|^2 is
         |G|^2 + tr(S) / B, the measured norm, from running means, as are both variances. The paper's averaging of gradients over
         several iterations, against tests that fail by chance, is that running mean.
Limits:  only grows. Needs the variance along d (`UpdateMeasurement.noise_along`): an update without it is skipped.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from bigbatch.batching.decision import Proposal
from bigbatch.batching.norm_test import check_theta, required_batch
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Positive
from bigbatch.recipe.batch_rules import CoScaling, Measured

PAPER = Paper(
    method="Inner product test",
    title="Adaptive Sampling Strategies for Stochastic Optimization",
    authors="Bollapragada, Byrd, Nocedal",
    year=2017,
    arxiv="1710.11258",
    where="the augmented inner product test",
    study="studies/adaptive_batch",
)


def inner_product_test(
    global_batch: float, *, signal: float, noise: float, noise_along: float, theta: float = 0.9, nu: float = 5.84
) -> float:
    """The batch that both tests ask for: B itself where both are passed.

    Args:
        global_batch: B, samples.
        signal: |G|^2, averaged.
        noise: tr(S), averaged, 0 or more.
        noise_along: d'Sd / |d|^2, averaged, from 0 to `noise`.
        theta: Bound of the inner product test.
        nu: Bound of the orthogonality test; 5.84 is the paper's.

    Returns:
        B, or a whole number above it; infinity where |g|^2 is not positive.

    >>> inner_product_test(4, signal=1.0, noise=12.0, noise_along=8.0, theta=0.5, nu=0.5)  # |g|^2 = 4: 8 / 1 and 4 / 1
    8
    """
    sq_norm = signal + noise / global_batch
    inner = required_batch(global_batch, noise=noise_along, sq_norm=sq_norm, bound=theta)
    orthogonal = required_batch(global_batch, noise=noise - noise_along, sq_norm=sq_norm, bound=nu)
    return max(inner, orthogonal)


class InnerProductTest(SmoothedRule):
    """Wishes for the batch that passes the inner product test and the orthogonality test; only grows.

    Args:
        theta: Bound of the inner product test, above 0 and below 1.
        nu: Bound of the orthogonality test, above 0.
        decay: Of the running means.

    Raises:
        UserError: If `theta`, `nu` or `decay` is out of range.
    """

    def __init__(self, *, theta: float = 0.9, nu: float = 5.84, decay: float = 0.99) -> None:
        check_theta(theta)
        check_positive("nu", nu, "the paper's is 5.84")
        self.theta, self.nu = theta, nu
        super().__init__(decay, also=("noise_along",))

    def propose(self, global_batch: int) -> Proposal | None:
        """The present batch, or the larger one that the tests ask for; None before 20 updates. The means are clipped to 0..tr(S)."""
        if not self.smoothed.ready:
            return None
        noise = self.smoothed.noise
        along = min(max(self.smoothed.mean("noise_along"), 0.0), noise)
        wanted = inner_product_test(global_batch, signal=self.smoothed.signal, noise=noise, noise_along=along, theta=self.theta, nu=self.nu)
        passed = "passed" if wanted == global_batch else "failed"
        return Proposal(wanted, f"inner product test {passed}, {self.smoothed.words}")


class InnerProductTestSection(Measured):
    """Grows until samples agree with the mean gradient in direction, and across it."""

    kind: Literal["inner_product_test"] = "inner_product_test"
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    nu: Positive = 5.84
    lr: CoScaling = "none"


@BATCH_RULES.register("inner_product_test", InnerProductTestSection)
def build(rule: InnerProductTestSection, *_: Any) -> InnerProductTest:
    """The recipe's rule."""
    return InnerProductTest(theta=rule.theta, nu=rule.nu)
