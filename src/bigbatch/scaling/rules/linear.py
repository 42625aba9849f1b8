r"""Linear scaling: the rate grows with the batch, through a gradual warm-up.

Paper:   Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, Sections 2.1, 2.2 and 5.1.
Formula: eta_k = k eta,   k = batch / reference batch;   warm-up over 5 epochs from eta to k eta, then the ordinary schedule.
         In the paper's own numbers: eta = 0.1 kn/256.
Keeps:   weight decay (Remark 1) and what it applies to, momentum, epochs, samples per normalisation group.
Sets:    last gamma of each residual block zero (Section 5.1), where the recipe has the option and k >= 2.
Differs: a reference that warms up itself, over e epochs from f0 of its rate, keeps that as far as one straight line can: over max(e, 5)
         epochs from (1 - (1 - f0) e / max(e, 5)) / k of the peak, which starts lower by as many samples times rate as the reference
         does. Below k = 2 the 5 epochs are 5 (k - 1), so that the recipe tends to the reference. A decay follows the warm-up and is
         shortened by it, unless the recipe's schedule.combine is "product"; steps stay. AutoWU keeps its own warm-up. k < 1: none.
Limits:  ImageNet held to k = 32 (8,192); the rule needs k steps at eta to point the same way, which fails early in a run.
"""

from collections.abc import Iterator
from typing import NamedTuple

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import WarmupSection
from bigbatch.scaling.change import GROWN, Change, kept_group, scaled_rates
from bigbatch.schedules.constant_warmup import ConstantWarmupSection
from bigbatch.schedules.gradual_warmup import GradualWarmupSection

PAPER = Paper(
    method="Linear scaling",
    title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    authors="Goyal et al.",
    year=2017,
    arxiv="1706.02677",
    where="Sections 2.1 and 5.1",
    study="studies/scaling_rules",
)
WARMUP_EPOCHS = 5.0


def linear_lr(lr: float, k: float) -> float:
    """The rate for k times the batch.

    >>> linear_lr(0.1, 8192 / 256)
    3.2
    """
    return k * lr


@RULES.register("linear")
def linear(recipe: Recipe, k: float) -> list[Change]:
    """What Goyal et al. change besides the batch."""
    why = f"times k = {k:g}; weight decay and momentum stay (Remark 1)"
    changes = [*scaled_rates(recipe, linear_lr(1.0, k), why, PAPER)]
    if k > 1:
        changes += _warmup(recipe, k)
    if "zero_init_last_gamma" in recipe.model and k >= GROWN:
        why = "each residual block starts as the identity, which eases the start at a high rate (Section 5.1)"
        changes.append(Change("model.zero_init_last_gamma", recipe.model["zero_init_last_gamma"], True, why, PAPER))
    return [*changes, *kept_group(recipe, k, PAPER)]


class Ramp(NamedTuple):
    """A gradual warm-up."""

    epochs: float
    start_factor: float  # of the new peak rate


def ramp(k: float, *, epochs: float = 0.0, start_factor: float = 1.0) -> Ramp:
    """Goyal's warm-up for k times the batch, after a reference's own ramp of so many epochs from `start_factor`.

    >>> ramp(32)
    Ramp(epochs=5.0, start_factor=0.03125)
    >>> ramp(32, epochs=20, start_factor=0.0)
    Ramp(epochs=20, start_factor=0.0)
    """
    longest = max(epochs, WARMUP_EPOCHS * min(1.0, k - 1))
    return Ramp(longest, (1 - (1 - start_factor) * epochs / longest) / k if longest else 1 / k)


def _warmup(recipe: Recipe, k: float) -> Iterator[Change]:
    epochs = recipe.warmup_epochs
    match recipe.schedule.warmup:
        case WarmupSection(learns=True):
            return  # finds the rate itself, up to the new peak
        case ConstantWarmupSection(factor=factor) if k < GROWN:
            yield Change("schedule.warmup.factor", factor, factor / k, "the reference's rate meanwhile", PAPER)
            return
        case ConstantWarmupSection(factor=factor):
            to = Ramp(max(epochs, WARMUP_EPOCHS), factor / k)
        case GradualWarmupSection(start_factor=start_factor):
            to = ramp(k, epochs=epochs, start_factor=start_factor)
        case _:
            to = ramp(k)
    why = f"from the base rate, 1/k of the peak, by a constant each update, for {WARMUP_EPOCHS:g} epochs; a longer or lower start is kept"
    for name, value in {"kind": "gradual", **to._asdict()}.items():
        yield Change(f"schedule.warmup.{name}", recipe.get(f"schedule.warmup.{name}"), value, why, PAPER)
