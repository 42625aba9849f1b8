"""What can go wrong with a planned run, each with a remedy that can be typed as it stands."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from bigbatch.core.clock import Clock
from bigbatch.core.methods import RULES
from bigbatch.recipe import Recipe
from bigbatch.recipe.batch_rules import Scheduled
from bigbatch.scaling.auto import keeper
from bigbatch.scaling.change import readable
from bigbatch.scaling.evidence import BEYOND, EVIDENCE, STUDY
from bigbatch.scaling.local import MOST_WORKERS, REACH, LocalSteps, exchanges
from bigbatch.scaling.local import STUDY as LOCAL_STUDY
from bigbatch.scaling.rules.sde import largest_inside, outside
from bigbatch.scaling.rules.switch import ADAMS
from bigbatch.scaling.rules.timescale import without_timescale
from bigbatch.scaling.rules.weight_decay import MOST_SUMMANDS, converted_decay
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.schedules.step_decay import StepDecaySection

FEW_UPDATES = 100
"""Below this many updates every method has trouble."""
FEW_EXCHANGES = 10
"""Below this many exchanges, local steps have trouble."""
MEASURE = "measure whether it holds (`bigbatch scale`), at a part of the budget if need be"
STRONG_DECAY = 0.5
"""Largest part of a weight that decay may take away in an update without a warning."""
LOW_PEAK = 0.9
"""Largest part of the peak rate that a run may stay below without a warning."""


class Remedy(NamedTuple):
    """Arguments of `plan` (and options of `bigbatch plan`) that end a warning."""

    reference: Mapping[str, Any] = {}  # fields of the reference to set before the rule
    planned: Mapping[str, Any] = {}  # fields of the planned recipe to set after it
    global_batch: int | None = None
    rule: str | None = None

    @property
    def options(self) -> list[str]:
        """As options of the command line."""
        sets = [(name, value) for name, value in self.reference.items()] + [(f"plan.{name}", value) for name, value in self.planned.items()]
        options = [f"--set {name}={value}" for name, value in sets]
        options += [f"--global-batch {self.global_batch}"] if self.global_batch is not None else []
        return options + ([f"--rule {self.rule}"] if self.rule is not None else [])


class PlanWarning(str):
    """A warning in words: what is doubtful, and the options that end it.

    Attributes:
        kind: Short name of what is doubtful.
        text: Without the options.
        remedies: Each ends the warning.
    """

    kind: str
    text: str
    remedies: tuple[Remedy, ...]

    def __new__(cls, kind: str, text: str, *remedies: Remedy) -> Self:
        """Join the text and the options."""
        tried = " or ".join(" ".join(remedy.options) for remedy in remedies)
        warning = super().__new__(cls, f"{text}; try {tried}" if tried else text)
        warning.kind, warning.text, warning.remedies = kind, text, remedies
        return warning

    def without(self, no_remedy: Callable[[Remedy], bool]) -> "PlanWarning":
        """The same, without remedies that are none."""
        return PlanWarning(self.kind, self.text, *(remedy for remedy in self.remedies if not no_remedy(remedy)))


def warnings_of(
    reference: Recipe, planned: Recipe, rule: str, overrides: Mapping[str, Any], noise_scale: float | None
) -> Iterator[PlanWarning]:
    """All that is doubtful about a plan.

    Args:
        reference: The tuned recipe.
        planned: The new one.
        rule: That was applied.
        overrides: Fields of the planned recipe that the user set.
        noise_scale: Of the reference, samples, if it was measured.
    """
    k = planned.batch.global_batch / reference.batch.global_batch
    if "optimizer.name" not in overrides:
        yield from _optimizer(reference, planned, rule)
    yield from _beyond_noise_scale(reference.batch.global_batch, planned.batch.global_batch, noise_scale)
    yield from _schedule(planned)
    if "optimizer.weight_decay" not in overrides:
        yield from _decay(reference, planned)
        if rule == "timescale" and k != 1:
            yield from _timescale(reference)
    if k > 1:
        yield from _evidence(reference, rule, k)
        yield from _growth(reference, planned, rule, k)
        if rule == "sde" and reference.optimizer.name in ADAMS and "optimizer.betas" not in overrides:
            yield from _sde(reference, planned, k)
        if not any(field.startswith("schedule.warmup") for field in overrides):
            yield from _long_warmup(reference, planned)
    yield from _strong_decay(planned)
    if reference.get("optimizer.groups") and planned.get("optimizer.groups") is None and "optimizer.groups" not in overrides:
        yield _dropped_groups(reference, planned)
    yield from _period(reference, planned, k, overrides)
    yield from _groups(reference, planned, k)
    yield from _batch_rule(reference, planned, k, overrides)
    if k < 1:
        yield PlanWarning("smaller", "the batch shrinks: the rules were made, and tested, for growing it; compare by measurement")


def local_warnings(reference: Recipe, steps: LocalSteps) -> Iterator[PlanWarning]:
    """What is doubtful about a plan of local steps, besides its updates."""
    number, local = exchanges(steps, reference), steps.inner_batch // steps.workers
    if steps.period == 1:
        yield PlanWarning(
            "every update",
            f"{steps.samples:,} samples are one update: workers exchange after each, as by all-reduce; plan for more samples",
        )
    if number < FEW_EXCHANGES:
        smaller = reference.total_samples // FEW_EXCHANGES
        yield PlanWarning(
            "few exchanges",
            f"only {number} exchange{'s' * (number != 1)}: below about {FEW_EXCHANGES} workers drift apart on their own samples; exchange "
            "more often",
            *([Remedy(global_batch=smaller)] if smaller >= reference.batch.global_batch else []),
        )
    k = steps.samples / reference.batch.global_batch
    if (k > REACH or steps.workers > MOST_WORKERS) and steps.period > 1:
        smaller = math.floor(REACH * reference.batch.global_batch)
        yield PlanWarning(
            "reach",
            f"{k:g} times the tuned batch between exchanges of {steps.workers} workers: {REACH:g} times and {MOST_WORKERS} workers are the "
            f"most at which every task that was measured held ({LOCAL_STUDY}); {MEASURE}",
            *([Remedy(global_batch=smaller)] if k > REACH else []),
        )
    ghost = reference.batch.ghost_batch
    if isinstance(ghost, int) and steps.ghost_batch is None and local % ghost:
        yield PlanWarning(
            "odd group",
            f"{local} samples of a worker in an update are not a multiple of ghost_batch = {ghost}: one normalisation group of each has "
            "another size; choose other numbers of samples or workers",
        )
    if steps.ghost_batch is not None:
        yield PlanWarning(
            "groups",
            f"{local} samples of a worker in an update: normalisation groups shrink from {reference.batch.ghost_batch} to "
            f"{steps.ghost_batch}, which is part of what was tuned; use fewer workers",
        )


def _beyond_noise_scale(before: int, after: int, noise_scale: float | None) -> Iterator[PlanWarning]:
    """What a batch above the noise scale costs, by S / S_min = 1 + B_noise / B and E / E_min = 1 + B / B_noise (McCandlish et al. 2018)."""
    if noise_scale is not None and after > max(noise_scale, before):
        steps, samples = ([1 + noise_scale / b for b in (before, after)], [1 + b / noise_scale for b in (before, after)])
        yield PlanWarning(
            "noise scale",
            f"the batch of {after:,} is {after / noise_scale:.3g} times the noise scale of {noise_scale:,.0f} samples: to the same "
            f"training loss expect {samples[1] / samples[0]:.3g} times the reference's samples for {steps[0] / steps[1]:.3g} times fewer "
            f"updates (S/S_min = {steps[1]:.2f}, E/E_min = {samples[1]:.3g}); train longer, or choose a smaller batch",
            Remedy(global_batch=max(math.floor(noise_scale), before)),
        )


def _schedule(planned: Recipe) -> Iterator[PlanWarning]:
    epochs, warmup, decay = planned.total_epochs, planned.schedule.warmup, planned.schedule.decay
    if warmup.learns:
        return
    length = planned.warmup_epochs
    first_drop = min(decay.milestones) if isinstance(decay, StepDecaySection) else math.inf
    if length >= epochs:
        yield PlanWarning(
            "warm-up",
            f"warm-up of {length:g} epochs is not shorter than the run of {epochs:g}: the peak rate is never reached; shorten it, train "
            "longer or choose a smaller batch",
            Remedy(planned={"schedule.warmup.epochs": _whole_updates(planned, epochs / 10)}),
        )
    elif first_drop < length:
        yield PlanWarning(
            "milestone",
            f"the rate first drops at epoch {first_drop:g}, inside the warm-up of {length:g}: move the milestone or shorten the warm-up",
            Remedy(planned={"schedule.warmup.epochs": _whole_updates(planned, first_drop / 2)}),
        )
    elif (peak := largest_factor(planned)) < LOW_PEAK:
        both = planned.schedule.combine == "product"
        tries = [Remedy(planned={"schedule.combine": "sequential"})] if both else []
        tries.append(Remedy(planned={"schedule.warmup.epochs": _whole_updates(planned, min(length, epochs / 10))}))
        yield PlanWarning(
            "peak",
            f"the largest rate of the run is {peak:.2f} of optimizer.lr = {readable(planned.optimizer.lr)}: "
            + ("the decay runs during the warm-up" if both else "the warm-up leaves it no update at its peak"),
            *[remedy for remedy in tries if largest_factor(planned.replace(remedy.planned)) >= LOW_PEAK],
        )


def _whole_updates(planned: Recipe, epochs: float) -> float:
    """So many epochs, or a little less: a whole number of updates."""
    an_update = planned.batch.global_batch / planned.num_train_samples
    return float(f"{math.floor(epochs / an_update) * an_update:.6g}")


def largest_factor(recipe: Recipe) -> float:
    """The largest factor of the peak rate that any update of the run has.

    >>> slow = Recipe.named("digits/mlp").replace({"schedule.combine": "product", "schedule.warmup.epochs": 10})
    >>> round(largest_factor(slow), 2)  # a linear decay, half over when the warm-up of 10 of 20 epochs ends
    0.5
    """
    schedule, batch, updates = schedule_of(recipe), recipe.batch.global_batch, recipe.num_updates
    every = -(-updates // MOST_SUMMANDS)
    return max(schedule(Clock(update * batch, update)) for update in range(0, updates, every))


def _decay(reference: Recipe, planned: Recipe) -> Iterator[PlanWarning]:
    old, new = reference.optimizer, planned.optimizer
    if old.name == new.name or (decay := converted_decay(reference, planned)).exact:
        return
    yield PlanWarning(
        "weight decay",
        f"weight_decay = {old.weight_decay:g} of {old.name} has no equivalent in {new.name}: {decay.value:g} is what was published for it, "
        "not what was tuned here; choose it by validation",
        Remedy(planned={"optimizer.weight_decay": decay.value}),
    )


def _strong_decay(planned: Recipe) -> Iterator[PlanWarning]:
    """Where decay alone takes most of a weight away in an update: what is left of "as much over the run" in few updates."""
    o = planned.optimizer
    if o.decay_divisor is None or planned.schedule.warmup.learns or not o.weight_decay:
        return
    if (taken := o.lr * o.weight_decay / o.decay_divisor * largest_factor(planned)) > STRONG_DECAY:
        weaker = float(f"{0.99 * STRONG_DECAY / taken * o.weight_decay:.4g}")
        yield PlanWarning(
            "strong decay",
            f"weight_decay = {readable(o.weight_decay)} takes up to {taken:.2g} of every weight away in one update (above 1 its sign "
            "changes): too few updates for the decay of the whole run; choose a smaller batch, or less decay",
            Remedy(planned={"optimizer.weight_decay": weaker}),
        )


def _dropped_groups(reference: Recipe, planned: Recipe) -> PlanWarning:
    old, new = reference.optimizer.name, planned.optimizer.name
    named = ", ".join(reference.optimizer.groups)
    return PlanWarning(
        "dropped groups",
        f"optimizer.groups says for {old} what {named} count as; {new} splits parameters by other kinds, so it is dropped: see `bigbatch "
        "plan --groups`, and set plan.optimizer.groups where that is not what you want",
    )


def _optimizer(reference: Recipe, planned: Recipe, rule: str) -> Iterator[PlanWarning]:
    old, new = reference.optimizer.name, planned.optimizer.name
    if old != new:
        yield PlanWarning(
            "optimizer",
            f"the optimizer changes from {old} to {new}: what was tuned for {old} is converted, not tuned anew; compare both",
            *([Remedy(rule=keeper(old))] if keeper(old) != rule else []),
        )


def _evidence(reference: Recipe, rule: str, k: float) -> Iterator[PlanWarning]:
    """Where the studies that `auto` chooses by say nothing, or nothing good."""
    name, updates = reference.optimizer.name, reference.num_updates
    if (evidence := EVIDENCE.get(name)) is None:
        yield PlanWarning("evidence", f"no study of this project has a reference with {name}: {MEASURE}")
        return
    if updates > BEYOND * evidence.most_updates:
        yield PlanWarning(
            "evidence",
            f"the reference has {updates:,} updates, and the longest with {name} that was studied {evidence.most_updates:,}, of "
            f"{evidence.models}: {MEASURE}",
        )
    if rule == evidence.rule and k > evidence.reach:
        smaller = math.floor(evidence.reach * reference.batch.global_batch)
        most = (
            f"{evidence.reach:g} times is the largest at which none of them was shown to lose" if evidence.reach > 1 else "none was found"
        )
        yield PlanWarning(
            "reach",
            f"{k:g} times the batch: on short runs no method held that on every task ({STUDY}); {most}",
            *([Remedy(global_batch=smaller)] if evidence.reach > 1 else []),
        )


def _growth(reference: Recipe, planned: Recipe, rule: str, k: float) -> Iterator[PlanWarning]:
    epochs, updates = planned.total_epochs, planned.num_updates
    if rule == "regime":
        yield PlanWarning(
            "cost",
            f"{epochs:g} epochs instead of {reference.total_epochs:g}: regime adaptation computes {k:g} times as much as the reference, in "
            "as many updates; it pays only where that much more hardware makes an update as fast",
            Remedy(rule="sqrt"),
        )
    if updates < FEW_UPDATES:
        remedies = [_longer(reference, FEW_UPDATES * planned.batch.global_batch / planned.total_samples)]
        if (smaller := planned.total_samples // FEW_UPDATES) >= reference.batch.global_batch and rule != "regime":
            remedies.append(Remedy(global_batch=smaller))
        yield PlanWarning(
            "few updates",
            f"only {updates} updates: below about {FEW_UPDATES} the number of updates is the limit, whatever the rate; train longer or "
            "choose a smaller batch",
            *remedies,
        )
    if rule == "linear" and planned.optimizer.name != "sgd":
        yield PlanWarning(
            "linear",
            f"the linear rule was made for SGD, not for {planned.optimizer.name}: its step does not shrink with the batch's noise in "
            "the same way",
            Remedy(rule="sqrt"),
        )
    if rule == "legw" and reference.warmup_samples == 0 and not reference.schedule.warmup.learns:
        yield PlanWarning(
            "no warm-up",
            "LEGW multiplies the reference's warm-up, and the reference has none, so there is none: tune the reference with a short one",
            Remedy(
                reference={
                    "schedule.warmup.kind": "gradual",
                    "schedule.warmup.epochs": _whole_updates(reference, 0.1 * reference.total_epochs / k),
                }
            ),
        )


def _long_warmup(reference: Recipe, planned: Recipe) -> Iterator[PlanWarning]:
    """Where a warm-up of as many updates takes the run: of two language models with AdamW one needed it, and one was ruined by it."""
    before, after, epochs = reference.warmup_epochs, planned.warmup_epochs, planned.total_epochs
    if {reference.optimizer.name, planned.optimizer.name} <= set(ADAMS) and 0 < before < epochs / 2 <= after < epochs:
        yield PlanWarning(
            "long warm-up",
            f"{100 * after / epochs:.0f} % of the run is a warm-up that keeps updates: best at 16 times the batch of a small transformer, "
            f"and 1.4 nats per byte worse than one that keeps samples for an LSTM with a high rate ({STUDY}, one seed); compare both",
            Remedy(planned={"schedule.warmup.epochs": before}),
        )


def _sde(reference: Recipe, planned: Recipe, k: float) -> Iterator[PlanWarning]:
    before, after = reference.get("optimizer.betas"), planned.get("optimizer.betas")
    if numbers := outside(before, k):
        said = [
            f"beta{n} goes from {before[n - 1]:g} to {after[n - 1]:.3g} (k (1 - beta{n}) = {k * (1 - before[n - 1]):.3g})" for n in numbers
        ]
        smaller = largest_inside(before)
        yield PlanWarning(
            "sde",
            f"{' and '.join(said)}: the rule is the limit of small steps in continuous time, which no longer describes this run",
            *([Remedy(global_batch=smaller * reference.batch.global_batch)] if smaller > 1 else []),
            Remedy(rule="adamw"),
        )


def _timescale(reference: Recipe) -> Iterator[PlanWarning]:
    if (why := without_timescale(reference)) is not None:
        own = reference.optimizer.name
        text = f"{why}: the rule scales that alone, so only the batch changes"
        yield PlanWarning("timescale", text, Remedy(rule=own if own in RULES else "sqrt"))


def _longer(reference: Recipe, times: float) -> Remedy:
    """A budget of the reference so many times as large, or a little larger."""
    budget = {name: value for name, value in reference.budget.model_dump().items() if value is not None}
    (unit, value), *_ = budget.items()
    return Remedy(reference={f"budget.{unit}": math.ceil(value * times)})


def _period(reference: Recipe, planned: Recipe, k: float, overrides: Mapping[str, Any]) -> Iterator[PlanWarning]:
    """Where workers take steps of their own, and their number stays while each is of more samples."""
    period = reference.get("comm.period")
    if k > 1 and period is not None and period > 1 and planned.get("comm.period") == period and "comm.period" not in overrides:
        fewer = max(1, round(period / k))
        yield PlanWarning(
            "period",
            f"comm.period = {period} updates stay, of {k:g} times the samples: workers exchange {k:g} times as seldom as in the reference",
            Remedy(planned={"comm.period": fewer}),
        )


def _groups(reference: Recipe, planned: Recipe, k: float) -> Iterator[PlanWarning]:
    batch, ghost = planned.batch.global_batch, planned.batch.ghost_batch
    if ghost == "global" and k != 1:
        yield PlanWarning(
            "global group",
            f"batch norm over the whole batch of {batch:,}: a different model from the one tuned at {reference.batch.global_batch:,}",
            *([Remedy(planned={"batch.ghost_batch": reference.batch.global_batch})] if k > 1 else []),
        )
    if isinstance(ghost, int) and batch % ghost:
        nearest = max(1, round(batch / ghost)) * ghost
        fits = nearest <= planned.num_train_samples
        yield PlanWarning(
            "odd group",
            f"global_batch = {batch} is not a multiple of ghost_batch = {ghost}: one normalisation group of each update has another size; "
            "choose a multiple",
            Remedy(global_batch=nearest if fits else nearest - ghost),
        )


def _batch_rule(reference: Recipe, planned: Recipe, k: float, overrides: Mapping[str, Any]) -> Iterator[PlanWarning]:
    """Where a schedule of the batch names batches of its own."""
    rule, total = planned.batch.rule, planned.total_samples
    if not isinstance(rule, Scheduled) or not rule.batches:
        return
    if (last := rule.last_change_samples) >= total:
        yield PlanWarning(
            "end of the batch's schedule",
            f'batch.rule.kind = "{rule.kind}" comes to its last batch of {rule.batches[-1]:,} after {last:,} samples, and the run has '
            f"{total:,}: it ends before; shorten the schedule, or train longer",
            _longer(reference, (last + 1) / total),
        )
    if k != 1 and not any(field.startswith("batch.rule") for field in overrides):
        named = ", ".join(f"{batch:,}" for batch in rule.batches)
        yield PlanWarning(
            "batch's schedule",
            f'batch.rule.kind = "{rule.kind}": only the first batch is {k:g} times the reference\'s; the rule goes on to {named}, as '
            "before: set plan.batch.rule.* to what it is to go to",
        )
