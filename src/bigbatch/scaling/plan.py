"""From a recipe tuned at one batch to the recipe for another: every change with its reason, every doubt as a warning."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive, unknown
from bigbatch.core.methods import RULES
from bigbatch.core.notebook import Content, Plot, as_html, as_pandas, plot_of, short
from bigbatch.recipe import Recipe
from bigbatch.recipe.recipe import recipe_in
from bigbatch.scaling.auto import auto, fallbacks
from bigbatch.scaling.change import Change
from bigbatch.scaling.keep_samples import keep_samples
from bigbatch.scaling.local import LocalSteps, local_changes, local_steps
from bigbatch.scaling.rules.weight_decay import KEPT_SHRINKAGE, converted_decay
from bigbatch.scaling.warmup_units import in_epochs, in_own_unit
from bigbatch.scaling.warnings import PlanWarning, local_warnings, warnings_of

OTHERS = ("auto", "local")
"""Rules beside those of the registry: one that chooses, and one that needs to know how many workers there are."""


class Plan(NamedTuple):
    """The recipe for the new batch, and how it came about."""

    recipe: Recipe
    changes: tuple[Change, ...]
    warnings: tuple[PlanWarning, ...]
    rule: str  # the rule that was applied; never "auto"
    reason: str  # why this rule
    reference: Recipe
    local: LocalSteps | None = None  # how workers exchange, by the rule "local"

    @property
    def multiple(self) -> float:
        """k: the new global batch over the reference's; by the rule "local", the samples between two exchanges over it."""
        samples = self.recipe.batch.global_batch if self.local is None else self.local.samples
        return samples / self.reference.batch.global_batch

    def shown(self) -> Content:
        """What a notebook shows: the rule in words, the changes as rows, then the warnings."""
        before, after = self.reference.batch.global_batch, self.recipe.batch.global_batch
        words = f"{self.reference.task or 'recipe'}: {before:,} to {after:,} by {self.rule}, {len(self.changes)} changes"
        words += f", {len(self.warnings)} warning{'s' * (len(self.warnings) != 1)}" if self.warnings else ""
        rows = [[c.field, c.before, c.after, c.why, c.paper.short if c.paper else ""] for c in self.changes]
        told = [f"{words}; {self.reason}", *(f"warning: {warning}" for warning in self.warnings)]
        return Content(told, ["field", "before", "after", "why", "paper"], rows)

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def plot(self) -> Plot:
        """The learning rates of both recipes, shown by a notebook."""
        return plot_of(self)

    def to_pandas(self) -> Any:
        """The changes as a pandas DataFrame, one a row.

        Raises:
            UserError: If pandas is not installed.
        """
        return as_pandas(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the rule, its changes and warnings, and both recipes."""
        return {
            "rule": self.rule,
            "reason": self.reason,
            "changes": [change.to_dict() for change in self.changes],
            "warnings": list(self.warnings),
            **({} if self.local is None else {"local": self.local._asdict()}),
            "recipe": self.recipe.to_dict(),
            "reference": self.reference.to_dict(),
        }


def plan(
    recipe: Recipe,
    *,
    global_batch: int,
    rule: str = "auto",
    workers: int | None = None,
    noise_scale: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    can_change: Callable[[str], bool] | None = None,
) -> Plan:
    """Rewrite a tuned recipe for another global batch. The samples seen stay the same, unless the rule is "regime".

    At the reference's own batch nothing changes, whatever the rule.

    Args:
        recipe: Tuned at its own `batch.global_batch`.
        global_batch: The batch to plan for, in samples per update over all workers; by the rule "local", between two exchanges.
        rule: "none" (only the batch changes), "linear", "sqrt", "legw"; "adamw", "sde", "timescale" (for recipes tuned with AdamW);
            "lars", "lamb", "adam", "adamp", "muon", "soap_muon" (which change the optimizer, unless the recipe has it already, as "adamw"
            and "sde" do where it is none of Adam's kind); "regime" (which keeps the updates, and trains longer); "local" (workers take
            small steps of their own between two exchanges); or "auto" (what held furthest in our studies).
        workers: That exchange, for the rule "local".
        noise_scale: Of the recipe, in samples, if it was measured (`bigbatch noise`): a batch above it is warned of, with what it costs.
        overrides: Dotted fields of the new recipe to set after the rule, such as {"schedule.warmup.epochs": 0.5}.
        can_change: Whether a dotted field of the recipe reaches what is trained; all do if left out. "auto" takes a rule that changes no
            other.

    Returns:
        The new recipe with its changes and warnings.

    Raises:
        UserError: If the rule is unknown, the batch is not positive, the recipe has AdaScale set its rate, the plan changes a field
            that can't be changed, or the rule "local" is not told how many workers there are.
        RecipeError: If the batch does not fit the training set, or an override does not fit the recipe.

    >>> plan(Recipe.named("digits/mlp"), global_batch=64, rule="sqrt").recipe.optimizer.lr  # doctest: +ELLIPSIS
    0.1414...
    """
    recipe = recipe_in(recipe)
    check_positive("global_batch", global_batch)
    if noise_scale is not None:
        check_positive("noise_scale", noise_scale, "measure over more updates, or leave it out")
    if rule not in (*OTHERS, *RULES):
        raise UserError(unknown("rule", rule, [*OTHERS, *RULES]))
    if recipe.batch.rule is not None and recipe.batch.rule.kind == "adascale" and rule != "none":
        raise UserError(f'rule = {rule!r} and batch.rule.kind = "adascale": both would raise the rate; use rule "none", or drop batch.rule')

    if rule == "local" and workers is None:
        raise UserError('rule = "local": needs the number of workers that exchange; give workers (--workers)')

    def by(name: str) -> Plan:
        if name == "local" and workers is not None:
            return _local(recipe, local_steps(recipe, global_batch, workers), noise_scale, overrides or {})
        return _planned(recipe, global_batch, name, noise_scale, overrides or {})

    made = by(rule)
    if can_change is None or not (stuck := _stuck(made, can_change)):
        return made
    if rule == "auto":
        for fallback in fallbacks(recipe.optimizer.name):
            if not _stuck(other := by(fallback), can_change):
                fields = ", ".join(stuck[:4]) + ", ..." * (len(stuck) > 4)
                return other._replace(reason=f"{made.rule} would change {fields}, which your script has no place for")
    raise UserError(
        f"the plan changes {', '.join(stuck)}; your command or function has no place for {'it' if len(stuck) == 1 else 'them'}: add a "
        "field to the command (and a word to `can`), or choose another rule (--rule)"
    )


def _local(recipe: Recipe, steps: LocalSteps, noise_scale: float | None, overrides: Mapping[str, Any]) -> Plan:
    how = {field.field: field for field in local_changes(recipe, steps)}
    inner = _planned(recipe, steps.inner_batch, "auto", noise_scale, overrides, how)
    doubts = (*_of_inner_updates(inner.warnings), *local_warnings(recipe, steps))
    reason = f"updates of {steps.inner_batch:,} by {inner.rule}: {inner.reason}"
    return inner._replace(rule="local", reason=reason, local=steps, warnings=doubts)


def _of_inner_updates(warnings: Iterable[PlanWarning]) -> Iterator[PlanWarning]:
    """Those of the plan for inner updates, without remedies that mean something else for local steps: another batch, another rule.

    How groups fit is a matter of a worker's share, see `local_warnings`.
    """
    for warning in warnings:
        if warning.kind != "odd group":
            yield warning.without(lambda remedy: remedy.rule is not None or remedy.global_batch is not None)


def _planned(
    recipe: Recipe,
    global_batch: int,
    rule: str,
    noise_scale: float | None,
    overrides: Mapping[str, Any],
    more: Mapping[str, Change] | None = None,
) -> Plan:
    k = global_batch / recipe.batch.global_batch
    rule, reason = auto(recipe, k) if rule == "auto" else (rule, "asked for")
    ruled: dict[str, Change] = {}
    if k != 1:
        known = in_epochs(recipe)
        changed = {change.field: change for change in (*keep_samples(recipe, global_batch), *RULES[rule].build(known, k))}
        ruled = in_own_unit(recipe, changed, global_batch)
    ruled |= more or {}
    own = {field: Change(field, recipe.get(field), value, "set by you") for field, value in overrides.items()}
    planned = recipe.replace({field: change.after for field, change in ruled.items() if change.before != change.after}, overrides)
    if own and (decay := _decay_anew(recipe, planned, ruled, own)) is not None:
        ruled[decay.field], planned = decay, planned.replace({decay.field: decay.after})
    changes = tuple(c for c in {**{f: c for f, c in ruled.items() if _stands(c, planned)}, **own}.values() if c.before != c.after)
    return Plan(planned, changes, tuple(warnings_of(recipe, planned, rule, own, noise_scale)), rule, reason, recipe)


def _decay_anew(reference: Recipe, planned: Recipe, ruled: Mapping[str, Change], own: Mapping[str, Change]) -> Change | None:
    """The weight decay for the fields that the user has set, where a rule converted it for others, or the user changes the optimizer."""
    field, name = "optimizer.weight_decay", "optimizer.name"
    if field in own:
        return None
    by_rule = ruled[name].after if name in ruled else reference.optimizer.name
    if planned.optimizer.name == by_rule and (field not in ruled or ruled[field].why != KEPT_SHRINKAGE):
        return None
    decay = converted_decay(reference, planned)
    return Change(field, reference.optimizer.weight_decay, decay.value, decay.why)


def _stands(change: Change, planned: Recipe) -> bool:
    """Whether the plan has what a rule changed: what the user sets can take its place."""
    value = planned.get(change.field)
    return bool(value == change.after) or (isinstance(value, list | tuple) and list(value) == list(change.after or []))


def _stuck(made: Plan, can_change: Callable[[str], bool]) -> list[str]:
    """Fields that a plan changes, and that do not reach what is trained."""
    before, after = made.reference.to_flat_dict(), made.recipe.to_flat_dict()
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return [name for name in changed if not can_change(name)]
