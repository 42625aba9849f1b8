r"""Follow the noise scale: the batch is the geometric mean of the noise scale and of what an update is worth in samples.

Paper:   McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162, Appendix D.
Formula: B = sqrt(r B_noise).  A batch of B needs (1 + B_noise / B) times the fewest updates and (1 + B / B_noise) times the fewest
         samples; B is where samples + r updates is least.
Units:   samples. r, the exchange rate, is the number of samples that one would spend to save one update.
Differs: B_noise is B_simple = tr(S) / |G|^2, from running means; the paper's own includes the Hessian. In a recipe it is that of the
         optimizer's norm (`norm`, see bigbatch.noise.dual_norm), for which updates are looked at now and then. Where the mean signal is
         not positive the wish is infinite.
Limits:  the paper predicts small gains from this (about 4 % on SVHN). B_noise moves with the temperature, rate / batch: a rule that
         follows it while the rate follows the batch is a feedback loop. Decide now and then, in bounds.
"""

import math
from typing import Any, Literal, cast

from bigbatch.batching.decision import Proposal
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import RecipeError, check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Positive
from bigbatch.recipe.batch_rules import Measured

PAPER = Paper(
    method="Noise-scale batch",
    title="An Empirical Model of Large-Batch Training",
    authors="McCandlish et al.",
    year=2018,
    arxiv="1812.06162",
    where="Appendix D",
    study="studies/adaptive_batch",
)


def batch_of_noise_scale(noise_scale: float, exchange_rate: float) -> float:
    """B = sqrt(r B_noise), samples.

    Args:
        noise_scale: B_noise, samples; infinity where there is no signal above the noise.
        exchange_rate: r, samples that an update is worth.

    >>> batch_of_noise_scale(400.0, 100.0)
    200.0
    """
    return math.sqrt(exchange_rate * noise_scale)


def norm_of(recipe: Recipe, *, has_mean: bool = True) -> Literal["euclidean", "l1", "nuclear"]:
    """In which norm a recipe's rule has the noise scale measured; "euclidean" is tr(S) / |G|^2.

    Args:
        recipe: Of the run; with any rule, or none.
        has_mean: Whether each worker gets the whole mean gradient, which other norms than the euclidean need; "auto" goes by it.

    Raises:
        RecipeError: If another norm is asked for, and can't be measured.
    """
    rule, optimizer = recipe.batch.rule, recipe.optimizer.name
    norm = rule.norm if isinstance(rule, NoiseScaleRuleSection) else "euclidean"
    if norm == "auto":
        return cast(Literal["euclidean", "l1", "nuclear"], NORM_OF.get(optimizer, "euclidean") if has_mean else "euclidean")
    if norm == "nuclear" and optimizer != "muon":
        raise RecipeError(f"batch.rule.norm = 'nuclear' and the optimizer {optimizer}: only muon steps in it; take 'auto'")
    if norm != "euclidean" and not has_mean:
        raise RecipeError(
            f"batch.rule.norm = {norm!r}, and workers that don't get the whole mean gradient: can't be measured; take 'euclidean', or "
            "all_reduce without loss"
        )
    return norm


class NoiseScaleRule(SmoothedRule):
    """Wishes for sqrt(r B_simple), up and down.

    Args:
        exchange_rate: r, samples that one would spend to save one update, above 0. A larger one gives larger batches and fewer updates.
        decay: Of the running means of signal and noise.

    Raises:
        UserError: If `exchange_rate` or `decay` is out of range.

    >>> from bigbatch.batching import UpdateMeasurement
    >>> rule = NoiseScaleRule(exchange_rate=100.0)
    >>> for _ in range(20):
    ...     rule.observe(UpdateMeasurement(global_batch=64, signal=1.0, noise=400.0))
    >>> round(rule.propose(64).global_batch)
    200
    """

    def __init__(self, *, exchange_rate: float, decay: float = 0.99) -> None:
        check_positive("exchange_rate", exchange_rate, "give the samples that an update is worth, such as the batch of the reference run")
        self.exchange_rate = exchange_rate
        super().__init__(decay)

    def propose(self, global_batch: int) -> Proposal | None:  # noqa: ARG002  the present batch does not matter here
        """The square root of the noise scale times the exchange rate; None before 20 updates."""
        if not self.smoothed.ready:
            return None
        return Proposal(batch_of_noise_scale(self.smoothed.noise_scale, self.exchange_rate), self.smoothed.words)


RuleNorm = Literal["auto", "euclidean", "l1", "nuclear"]
NORM_OF = {"adam": "l1", "adamw": "l1", "adamp": "l1", "lamb": "l1", "muon": "nuclear"}
"""Optimizer to the norm that it steps in; all others step along the gradient."""


class NoiseScaleRuleSection(Measured):
    """The root of `exchange_rate` times the noise scale, which is measured in the optimizer's norm."""

    kind: Literal["noise_scale"] = "noise_scale"
    exchange_rate: Positive = 1000.0  # samples that may be spent to save one update
    norm: RuleNorm = "auto"  # the optimizer's, or euclidean: the plain noise scale


@BATCH_RULES.register("noise_scale", NoiseScaleRuleSection)
def build(rule: NoiseScaleRuleSection, *_: Any) -> NoiseScaleRule:
    """The recipe's rule."""
    return NoiseScaleRule(exchange_rate=rule.exchange_rate)
