r"""LEGW, linear-epoch gradual warm-up: square-root rate, and a warm-up whose *epochs* grow with the batch.

Paper:   You et al. 2019, Large-Batch Training for LSTM and Beyond, arXiv:1901.08256, Section 3.
Formula: eta_k = sqrt(k) eta,   warm-up epochs e_k = k e,   rate from 0 in a straight line per update, then the ordinary schedule.
         e_k epochs are e_k N / (k B) = e N / B updates: the number of warm-up *updates* is the same at every k.
Keeps:   everything else.
Differs: a reference that warms up from another fraction than 0, or at a constant rate, keeps that. A decay follows the warm-up
         and is shortened by it, unless the recipe's schedule.combine is "product".
"""

import math

from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import TimedWarmup
from bigbatch.scaling.change import Change, kept_group, scaled_rates

PAPER = Paper(
    method="LEGW",
    title="Large-Batch Training for LSTM and Beyond",
    authors="You et al.",
    year=2019,
    arxiv="1901.08256",
    where="Section 3",
    study="studies/scaling_rules",
)


def legw_lr(lr: float, k: float) -> float:
    """The peak rate for k times the batch.

    >>> legw_lr(0.1, 16)
    0.4
    """
    return math.sqrt(k) * lr


def legw_warmup_epochs(warmup_epochs: float, k: float) -> float:
    """The warm-up for k times the batch, in epochs.

    >>> legw_warmup_epochs(0.25, 16)
    4.0
    """
    return k * warmup_epochs


@RULES.register("legw")
def legw(recipe: Recipe, k: float) -> list[Change]:
    """What LEGW changes besides the batch."""
    warmup, root = recipe.schedule.warmup, math.sqrt(k)
    changes = [*scaled_rates(recipe, legw_lr(1.0, k), f"times sqrt(k) = {root:g}", PAPER)]
    if isinstance(warmup, TimedWarmup) and warmup.epochs is not None:
        epochs = legw_warmup_epochs(warmup.epochs, k)
        why = f"times k = {k:g}: as many warm-up updates as in the reference"
        changes.append(Change("schedule.warmup.epochs", warmup.epochs, epochs, why, PAPER))
    return [*changes, *kept_group(recipe, k, PAPER)]
