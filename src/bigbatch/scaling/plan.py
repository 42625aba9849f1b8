"""From a recipe tuned at one batch to the recipe for another: every change with its reason, every doubt as a warning."""

from collections.abc import Iterator
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive, unknown
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import ConstantWarmup, GradualWarmup, StepDecay
from bigbatch.scaling.adam import adam, adamp
from bigbatch.scaling.auto import auto, doubt
from bigbatch.scaling.change import Change, Rule
from bigbatch.scaling.lamb import lamb
from bigbatch.scaling.lars import lars
from bigbatch.scaling.legw import legw
from bigbatch.scaling.linear import linear
from bigbatch.scaling.muon import muon
from bigbatch.scaling.none import none
from bigbatch.scaling.regime import regime
from bigbatch.scaling.sqrt import sqrt

RULES: dict[str, Rule] = {
    "none": none,
    "linear": linear,
    "sqrt": sqrt,
    "legw": legw,
    "lars": lars,
    "lamb": lamb,
    "adam": adam,
    "adamp": adamp,
    "muon": muon,
    "regime": regime,
}
"""Name of every rule that `plan` takes, besides "auto"."""

FEW_UPDATES = 100
"""Below this many updates every method has trouble; see warnings."""


class Plan(NamedTuple):
    """The recipe for the new batch, and how it came about."""

    recipe: Recipe
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    rule: str  # the rule that was applied; never "auto"
    reason: str  # why this rule
    reference: Recipe

    @property
    def multiple(self) -> float:
        """k: the new global batch over the reference's."""
        return self.recipe.batch.global_batch / self.reference.batch.global_batch


def plan(recipe: Recipe, *, global_batch: int, rule: str = "auto", noise_scale: float | None = None) -> Plan:
    """Rewrite a tuned recipe for another global batch. The samples seen stay the same, unless the rule is "regime".

    Args:
        recipe: Tuned at its own `batch.global_batch`.
        global_batch: The batch to plan for, in samples per update over all workers.
        rule: "none" (only the batch changes), "linear", "sqrt", "legw"; "lars", "lamb", "adam", "adamp", "muon" (which change the
            optimizer); "regime" (which keeps the updates, and trains longer); or "auto" (what held furthest in our studies).
        noise_scale: Of the recipe, in samples, if it was measured (`bigbatch noise`): a batch above it is warned of, with what it costs.

    Returns:
        The new recipe with its changes and warnings.

    Raises:
        UserError: If the rule is unknown, the batch is not positive, or the recipe has AdaScale set its rate.
        RecipeError: If the batch does not fit the training set.

    >>> plan(Recipe.named("digits/mlp"), global_batch=64, rule="sqrt").recipe.optimizer.lr  # doctest: +ELLIPSIS
    0.1414...
    """
    check_positive("global_batch", global_batch)
    if noise_scale is not None:
        check_positive("noise_scale", noise_scale, "measure over more updates, or leave it out")
    if rule not in ("auto", *RULES):
        raise UserError(unknown("rule", rule, ["auto", *RULES]))
    if recipe.batch.rule is not None and recipe.batch.rule.kind == "adascale" and rule != "none":
        raise UserError(f'rule = {rule!r} and batch.rule.kind = "adascale": both would raise the rate; use rule "none", or drop batch.rule')
    k = global_batch / recipe.batch.global_batch
    rule, reason = auto(recipe, k) if rule == "auto" else (rule, "asked for")
    told = {change.field: change for change in (*_keep_samples(recipe, global_batch), *RULES[rule](recipe, k))}  # a rule's comes last
    changes = [change for change in told.values() if change.before != change.after]
    planned = recipe.replace({change.field: change.after for change in changes})
    warnings = [*_beyond(recipe.batch.global_batch, global_batch, noise_scale), *_warnings(recipe, planned, rule)]
    return Plan(planned, tuple(changes), tuple(warnings), rule, reason, recipe)


def _keep_samples(recipe: Recipe, global_batch: int) -> Iterator[Change]:
    before = recipe.batch.global_batch
    yield Change("batch.global_batch", before, global_batch, f"the batch to plan for: {global_batch / before:g} times the reference's")
    micro, ghost = recipe.batch.micro_batch, recipe.batch.ghost_batch
    if isinstance(micro, int) and (micro > global_batch or ghost == "global"):
        yield Change("batch.micro_batch", micro, "auto", "a forward pass must fit the new batch; it never changes the update")
    if isinstance(ghost, int) and ghost > global_batch:
        yield Change("batch.ghost_batch", ghost, global_batch, "a normalisation group can't be larger than the batch")
    noise = recipe.batch.noise_batch
    if noise is not None and noise >= global_batch:
        yield Change("batch.noise_batch", noise, None, "the batch is no larger than that: its gradient is noisy enough")
    if recipe.budget.updates is not None:
        after = max(1, round(recipe.total_samples / global_batch))
        yield Change("budget.updates", recipe.budget.updates, after, "the same number of samples, in updates of the new batch")


def _beyond(before: int, after: int, noise_scale: float | None) -> Iterator[str]:
    """What a batch above the noise scale costs, by S / S_min = 1 + B_noise / B and E / E_min = 1 + B / B_noise (McCandlish et al. 2018)."""
    if noise_scale is not None and after > max(noise_scale, before):
        steps, samples = ([1 + noise_scale / b for b in (before, after)], [1 + b / noise_scale for b in (before, after)])
        yield (
            f"the batch of {after:,} is {after / noise_scale:.3g} times the noise scale of {noise_scale:,.0f} samples: to the same "
            f"training loss expect {samples[1] / samples[0]:.3g} times the reference's samples for {steps[0] / steps[1]:.3g} times fewer "
            f"updates (S/S_min = {steps[1]:.2f}, E/E_min = {samples[1]:.3g}); train longer, or choose at most about {noise_scale:,.0f}"
        )


def _warnings(reference: Recipe, planned: Recipe, rule: str) -> Iterator[str]:
    """What can go wrong with the planned run, each with a remedy."""
    epochs, warmup = planned.total_epochs, planned.schedule.warmup
    k = planned.batch.global_batch / reference.batch.global_batch
    if isinstance(warmup, GradualWarmup | ConstantWarmup):
        if warmup.epochs >= epochs:
            yield (
                f"warm-up of {warmup.epochs:g} epochs is not shorter than the run of {epochs:g}: the peak rate is never reached; "
                "train longer, choose a smaller batch, or shorten it with --set schedule.warmup.epochs=..."
            )
        elif isinstance(planned.schedule.decay, StepDecay) and min(planned.schedule.decay.milestones) < warmup.epochs:
            yield (
                f"the rate first drops at epoch {min(planned.schedule.decay.milestones):g}, inside the warm-up of {warmup.epochs:g}: "
                "move the milestone or shorten the warm-up"
            )
    if rule == "regime" and k > 1:
        yield (
            f"{epochs:g} epochs instead of {reference.total_epochs:g}: regime adaptation computes {k:g} times as much as the reference, in "
            "as many updates; it pays only where that much more hardware makes an update as fast"
        )
    if rule == "muon" and (why := doubt(k)) is not None:
        yield why
    if planned.num_updates < FEW_UPDATES and k > 1:
        yield (
            f"only {planned.num_updates} updates: below about {FEW_UPDATES} the number of updates is the limit, whatever the rate; "
            "train longer or choose a smaller batch"
        )
    if planned.batch.ghost_batch == "global" and k != 1:
        yield (
            f"batch norm over the whole batch of {planned.batch.global_batch:,}: a different model from the one tuned at "
            f"{reference.batch.global_batch:,}; set batch.ghost_batch = {reference.batch.global_batch}"
        )
    ghost = planned.batch.ghost_batch
    if isinstance(ghost, int) and planned.batch.global_batch % ghost:
        yield (
            f"global_batch = {planned.batch.global_batch} is not a multiple of ghost_batch = {ghost}: one normalisation group of "
            "each update has another size; choose a multiple"
        )
    if rule == "linear" and planned.optimizer.name != "sgd" and k > 1:
        yield (
            f"the linear rule was made for SGD, not for {planned.optimizer.name}: its step does not shrink with the batch's noise in "
            'the same way; use rule="sqrt"'
        )
    if rule == "legw" and reference.schedule.warmup.kind == "none" and k > 1:
        yield (
            "LEGW multiplies the reference's warm-up, and the reference has none, so there is none: tune the reference with a short "
            "one first (schedule.warmup.kind = 'gradual')"
        )
    if k < 1:
        yield "the batch shrinks: the rules were made, and tested, for growing it; compare by measurement"
