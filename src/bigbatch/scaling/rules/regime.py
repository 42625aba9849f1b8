r"""Regime adaptation: as many updates as the small batch made, so the run is longer by as much as the batch is larger.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Sections 4 and 5 ("regime adaptation").
Formula: with the batch k times as large,
             epochs_k = k epochs,    milestone_k = k milestone,    warmup_k = k warmup      [epochs: so many updates as before]
             eta_k = sqrt(k) eta,    the global norm of the mean gradient at most 5,    groups of the reference's batch.
Keeps:   everything else.
Differs: the paper's text names the clipping, its released code has the 5, for small and large batches alike. A reference that clips
         keeps its own bound; below twice the batch nothing is clipped. The schedule's warm-up, which the paper does not have, is kept
         in updates too.

It answers whether a large batch can be as good, not whether it is faster: an epoch costs the same, so the whole costs k times as much.
"""

from collections.abc import Iterator

from bigbatch.core.checks import UserError
from bigbatch.core.methods import RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import TimedWarmup
from bigbatch.scaling.change import GROWN, Change
from bigbatch.scaling.rules.sqrt import sqrt
from bigbatch.schedules.step_decay import StepDecaySection

PAPER = Paper(
    method="Regime adaptation",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 5",
    study="studies/train_longer",
)

CLIP_NORM = 5.0
"""Bound on the global norm of the mean gradient in the paper's released code."""


def longer(epochs: float, k: float) -> float:
    """The length that has as many updates at k times the batch.

    >>> longer(12, 16)
    192
    """
    return k * epochs


@RULES.register("regime")
def regime(recipe: Recipe, k: float) -> list[Change]:
    """What Hoffer et al. change besides the batch, longer training included.

    Raises:
        UserError: If the recipe sets its batch anew on the way: its updates can't be kept then.
    """
    if recipe.batch.rule is not None:
        raise UserError(f'batch.rule.kind = "{recipe.batch.rule.kind}": regime keeps the updates of a fixed batch; drop batch.rule')
    changes = [*sqrt(recipe, k), *_longer_run(recipe, k)]
    if recipe.optimizer.clip_norm is None and k >= GROWN:
        why = "the raised rate needs it; the paper's released code clips small and large batches alike"
        changes.append(Change("optimizer.clip_norm", None, CLIP_NORM, why, PAPER))
    return changes


def _longer_run(recipe: Recipe, k: float) -> Iterator[Change]:
    why = f"times k = {k:g}: as many updates as the reference"
    budget, warmup, decay = recipe.budget, recipe.schedule.warmup, recipe.schedule.decay
    if budget.epochs is not None:
        yield Change("budget.epochs", budget.epochs, longer(budget.epochs, k), why, PAPER)
    if budget.samples is not None:
        yield Change("budget.samples", budget.samples, round(longer(budget.samples, k)), why, PAPER)
    if budget.tokens is not None:
        yield Change("budget.tokens", budget.tokens, round(longer(budget.tokens, k)), why, PAPER)
    if budget.updates is not None:
        yield Change("budget.updates", budget.updates, budget.updates, "kept", PAPER)
        yield Change("budget.samples", None, None, "as many as the updates need", PAPER)
    if isinstance(warmup, TimedWarmup) and warmup.epochs is not None:
        yield Change("schedule.warmup.epochs", warmup.epochs, longer(warmup.epochs, k), why, PAPER)
    if isinstance(decay, StepDecaySection):
        yield Change("schedule.decay.milestones", decay.milestones, tuple(longer(m, k) for m in decay.milestones), why, PAPER)
