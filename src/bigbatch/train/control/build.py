"""From [batch.rule] of a recipe to what sets the batch, and what such a rule needs of the rest of the recipe."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from bigbatch.batching.absa import ABSA, ABSASection
from bigbatch.batching.adascale import AdaScale, AdaScaleSection, gain
from bigbatch.batching.decision import BatchRule, Bounds, UpdateMeasurement
from bigbatch.batching.inner_product_test import InnerProductTestSection
from bigbatch.batching.noise_scale import norm_of
from bigbatch.batching.smoothed import SmoothedNoise
from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import RecipeError, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.tensors.sharding import is_sharded
from bigbatch.noise.dual_norm_monitor import DualNormMonitor
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.norm_layers import NORMS, norm_parameters
from bigbatch.noise.reader import ALL
from bigbatch.recipe import Recipe
from bigbatch.recipe import batch_rules as sections
from bigbatch.scaling.rules.linear import linear_lr
from bigbatch.scaling.rules.sqrt import sqrt_lr
from bigbatch.schedules.autowu import AutoWU
from bigbatch.schedules.compose import Schedule
from bigbatch.schedules.from_recipe import decay_of, schedule_of, warmup_of
from bigbatch.train.control.batch_source import BatchSource, ScheduledBatch
from bigbatch.train.control.control import Control
from bigbatch.train.control.curvature_batch import CurvatureBatch
from bigbatch.train.control.curvature_measurement import CurvatureMeasurement
from bigbatch.train.control.learned_warmup import LearnedWarmup
from bigbatch.train.control.measured_batch import MeasuredBatch
from bigbatch.train.control.noise_measurement import NoiseMeasurement
from bigbatch.train.control.rate_source import GainRate, RateOfDecision, RateSource, ScaledRate
from bigbatch.train.data.micro_batch import micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.shares import Share, share_of
from bigbatch.train.measure.curvature_probe import CurvatureProbe
from bigbatch.train.state.record import Record

LOOKS = {"l1": 4, "nuclear": 20}
"""Updates from one look at the noise in an optimizer's norm to the next: 2 and 5 % of the time (benchmarks/dual_norm_overhead.json)."""
GROUPS = 4
"""Micro-batches of an update, over all workers, while noise is measured; more where they are small anyway."""
LOSSY = ("powersgd", "top_k", "int8", "int4", "sparse_loco")
"""Ways of compression that leave something out of an exchange, and make up for it in later ones."""
UNIT = 16
"""Samples of which a batch is a multiple, where neither normalisation groups nor a micro-batch say otherwise."""


def build_scheduled_batch(recipe: Recipe, schedule: Schedule | None = None) -> Callable[[Clock], tuple[int, float]]:
    """The batch and the factor of the peak rate, by the clock.

    Args:
        recipe: Of the run.
        schedule: Of the rate, where the rule has a factor of its own besides; the recipe's if left out.

    Raises:
        RecipeError: If the rule's bounds don't fit the recipe.
    """
    rule, bounds = recipe.batch.rule, Bounds(recipe.batch.global_batch, largest_of(recipe), unit_of(recipe))
    assert isinstance(rule, sections.Scheduled)
    try:
        grown = BATCH_RULES[rule.kind].build(rule, recipe, bounds)
        if rule.follows == "clock":
            rate = schedule or schedule_of(recipe)

            def by_interval(clock: Clock) -> tuple[int, float]:
                global_batch, factor = grown.at(clock)
                return global_batch, factor * rate(clock)

            return by_interval
        warmup, decay = warmup_of(recipe), decay_of(recipe)
    except UserError as error:
        raise RecipeError(f"batch.rule: {error}") from None

    def by_decay(clock: Clock) -> tuple[int, float]:
        global_batch, factor = grown.at(decay(clock))
        return global_batch, factor * warmup(clock)

    return by_decay


def build_batch_rule(recipe: Recipe) -> BatchRule:
    """The rule that is asked now and then.

    Raises:
        RecipeError: If its settings are impossible.
    """
    rule = recipe.batch.rule
    assert isinstance(rule, sections.Measured)
    try:
        built: BatchRule = BATCH_RULES[rule.kind].build(
            rule, recipe, Bounds(recipe.batch.global_batch, largest_of(recipe), unit_of(recipe))
        )
    except UserError as error:
        raise RecipeError(f"batch.rule: {error}") from None
    return built


def build_absa(recipe: Recipe) -> ABSA:
    """The rule that follows the curvature.

    Raises:
        RecipeError: If its settings are impossible, or do not fit the recipe.
    """
    rule = recipe.batch.rule
    assert isinstance(rule, ABSASection)
    if rule.tolerance < (least := 100 * torch.finfo(DTYPES[recipe.precision]).eps):
        raise RecipeError(
            f"batch.rule.tolerance = {rule.tolerance:g}: is below the rounding of {recipe.precision}; give {least:.0e} or more"
        )
    try:
        built: ABSA = BATCH_RULES["absa"].build(rule, recipe, Bounds(recipe.batch.global_batch, largest_of(recipe), unit_of(recipe)))
    except UserError as error:
        raise RecipeError(f"batch.rule: {error}") from None
    return built


def bounds_of(recipe: Recipe) -> Bounds:
    """Which batches a rule may choose.

    Raises:
        RecipeError: If there is none.
    """
    rule = recipe.batch.rule
    assert isinstance(rule, sections.Measured)
    bounds = Bounds(rule.smallest or recipe.batch.global_batch, largest_of(recipe), rule.multiple_of or unit_of(recipe))
    try:
        bounds.check()
    except UserError as error:
        raise RecipeError(f"batch.rule: {error}") from None
    return bounds


def largest_of(recipe: Recipe) -> int:
    """Largest batch that a rule may take: its own bound, or a tenth of the training set (Smith et al.)."""
    tenth = max(recipe.batch.global_batch, recipe.num_train_samples // 10)
    return min(getattr(recipe.batch.rule, "largest", None) or tenth, recipe.num_train_samples)


def unit_of(recipe: Recipe) -> int:
    """What batches are multiples of: the normalisation group, so that no group is odd, or the micro-batch."""
    batch = recipe.batch
    unit = batch.ghost_batch if isinstance(batch.ghost_batch, int) else batch.micro_batch if isinstance(batch.micro_batch, int) else UNIT
    return unit if batch.global_batch % unit == 0 else 1


def check_measurable(recipe: Recipe, *, world_size: int = 1, apart: bool = False) -> None:
    """Refuse recipes whose updates can't tell signal from noise.

    Args:
        recipe: Of the run.
        world_size: Number of workers.
        apart: Whether layers are to be measured apart from the rest.

    Raises:
        RecipeError: With the remedy.
    """
    batch, comm, own = recipe.batch, recipe.comm, world_size > 1 and measures_own(recipe)
    smallest = min(batch.global_batch, getattr(batch.rule, "smallest", None) or batch.global_batch)
    shares = [share_of(smallest, rank, world_size, batch.ghost_batch) for rank in range(world_size)] if own else [Share(0, smallest)]
    if min(len(micro_batches(share.num_samples, 1, batch.ghost_batch)) if share.num_samples else 0 for share in shares) < 2:
        whose = f"a worker's share of {smallest}, of which it measures its own gradient," if own else f"global_batch = {smallest}"
        if batch.ghost_batch is None:
            raise RecipeError(f"{whose} is one sample: one gradient can't tell signal from noise; raise the batch")
        raise RecipeError(
            f"{whose} is one normalisation group (ghost_batch = {batch.ghost_batch}): one gradient can't tell signal from noise; "
            "lower batch.ghost_batch to half of it, or start from twice the batch"
        )
    if (norm := rule_norm(recipe, world_size)) != "euclidean" and len(micro_batches(smallest, 1, batch.ghost_batch)) < 3:
        raise RecipeError(
            f"global_batch = {smallest} in fewer than three normalisation groups: the noise in {norm} needs three micro-batches; lower "
            "batch.ghost_batch, or set batch.rule.norm = 'euclidean'"
        )
    if apart and own and not comm.local_steps:
        raise RecipeError(
            "noise of layers apart, and an exchange that loses something: only the whole model can be measured; leave out layers, or norms"
        )
    if isinstance(batch.rule, InnerProductTestSection) and (comm.kind == "fully_shard" or measures_own(recipe)):
        what = "fully_shard" if comm.kind == "fully_shard" else "an exchange that loses something"
        raise RecipeError(f"inner_product_test and {what}: needs the whole mean gradient on every worker; use the norm test, or all_reduce")


def measures_own(recipe: Recipe) -> bool:
    """Whether each of several workers measures its own gradient, because none gets the mean of all as it is."""
    compression = getattr(recipe.comm, "compression", None)
    return recipe.comm.local_steps or (compression is not None and compression.kind in LOSSY)


def rule_norm(recipe: Recipe, world_size: int) -> Literal["euclidean", "l1", "nuclear"]:
    """In which norm the rule has noise measured.

    Raises:
        RecipeError: If it can't be.
    """
    return norm_of(recipe, has_mean=recipe.comm.kind == "all_reduce" and not (world_size > 1 and measures_own(recipe)))


def measures(recipe: Recipe, measure: bool | str) -> bool:
    """Whether a run measures noise: because its rule needs it, or because that is asked for."""
    return bool(measure) or isinstance(recipe.batch.rule, sections.Measured | AdaScaleSection)


def check_control(recipe: Recipe, *, measure: bool | str, world_size: int = 1) -> None:
    """Refuse what `build_control` could not work with, before anything is begun.

    Args:
        recipe: Of the run.
        measure: As in `build_control`.
        world_size: Number of workers.

    Raises:
        RecipeError: If the rule, or measuring, does not go with the rest of the recipe.
    """
    if recipe.adversarial is not None and measure:
        raise RecipeError(
            "measure_noise with [adversarial]: the two passes of a sample are not two samples; measure the run without [adversarial]"
        )
    if measures(recipe, measure):
        check_measurable(recipe, world_size=world_size, apart=measure in ("layers", NORMS))
    if measure == NORMS and recipe.batch.rule is not None and measures(recipe, measure=False):
        raise RecipeError(f"noise of norm layers alone, and the rule {recipe.batch.rule.kind}, which needs the whole's; leave one out")
    if (norm := rule_norm(recipe, world_size)) != "euclidean" and measure:
        raise RecipeError(f"measure_noise, and a rule that needs the noise in {norm}: leave it out, or set batch.rule.norm = 'euclidean'")
    if isinstance(recipe.batch.rule, sections.Measured):
        bounds_of(recipe)
        build_batch_rule(recipe)
    elif isinstance(recipe.batch.rule, sections.Scheduled):
        build_scheduled_batch(recipe)
    elif isinstance(recipe.batch.rule, ABSASection):
        build_absa(recipe)


def build_control(
    recipe: Recipe, comm: Comm, optimizer: Optimizer, record: Record, *, measure: bool | str, probe: Callable[..., CurvatureProbe]
) -> Control:
    """What the recipe's [batch.rule], [schedule] and [curvature] ask for.

    Args:
        recipe: Of the run.
        comm: Of the workers; knows the model.
        optimizer: Of the run.
        record: Gets what was measured.
        measure: Whether to measure noise where no rule asks for it; "layers" measures each layer too, "norms" the norm layers alone.
        probe: A `CurvatureProbe` of the run, but for what it is to see.

    Raises:
        RecipeError: Where `check_control` does.
    """
    schedule, total = schedule_of(recipe), recipe.total_samples
    batch, rate = build_sources(recipe, schedule, comm.ranks, record, probe)
    control = Control(batch, rate, total)
    if measures(recipe, measure):
        control.noise = _noise_measurement(recipe, comm, record, what=measure, observers=[batch.observe, rate.observe], optimizer=optimizer)
    if isinstance(schedule, AutoWU):
        back = bool(recipe.get("schedule.warmup.return_to_minimum"))
        control.warmup = LearnedWarmup(schedule, comm=comm, optimizer=optimizer, record=record, return_to_minimum=back)
    if (c := recipe.curvature) is not None:
        looks = probe(samples=c.samples, eigenvalues=c.eigenvalues, tolerance=c.tolerance, trace_tolerance=c.trace or None)
        control.curvature = CurvatureMeasurement(looks, record, every_updates=c.every_updates)
    return control


def build_sources(
    recipe: Recipe, schedule: Schedule, ranks: Ranks, record: Record | None = None, probe: Callable[..., CurvatureProbe] | None = None
) -> tuple[BatchSource, RateSource]:
    """Where the batch comes from, and the rate that goes with it; a record and a probe are ABSA's."""
    rule, total, global_batch = recipe.batch.rule, recipe.total_samples, recipe.batch.global_batch
    match rule:
        case None:
            return BatchSource(global_batch), RateSource(schedule, total)
        case sections.Scheduled():
            scheduled = build_scheduled_batch(recipe, schedule)
            return ScheduledBatch(scheduled, global_batch), RateSource(lambda clock: scheduled(clock)[1], total)
        case AdaScaleSection():
            return BatchSource(global_batch), GainRate(schedule, total, AdaScale(base_batch=rule.base_batch))
        case ABSASection():
            assert record is not None
            assert probe is not None
            looks = probe(samples=rule.samples, eigenvalues=1, tolerance=rule.tolerance)
            period = rule.every_epochs * recipe.num_train_samples
            where: dict[str, Any] = {"total_samples": total, "ranks": ranks, "record": record}
            followed = CurvatureBatch(build_absa(recipe), looks, global_batch=global_batch, period=period, **where)
            return followed, ScaledRate(schedule, total, _scaling(rule.lr, global_batch))
        case sections.Measured():
            when: dict[str, Any] = {"every_updates": rule.every_updates, "epoch": recipe.num_train_samples}
            measured = MeasuredBatch(build_batch_rule(recipe), bounds_of(recipe), global_batch=global_batch, ranks=ranks, **when)
            return measured, RateOfDecision(schedule, total, _scaling(rule.lr, global_batch, measured.noise))
        case _:
            raise AssertionError(rule)


def _scaling(how: str, base: int, noise: SmoothedNoise | None = None) -> Callable[[int], float]:
    """The factor of the rate that goes with a batch, the recipe's being `base`."""

    def of_batch(global_batch: int) -> float:
        match how:
            case "linear":
                return linear_lr(1.0, global_batch / base)
            case "sqrt":
                return sqrt_lr(1.0, global_batch / base)
            case "gain" if noise is not None and noise.num_seen:
                return gain(noise.signal, noise.noise, base, global_batch)
            case _:
                return 1.0

    return of_batch


def _noise_measurement(
    recipe: Recipe,
    comm: Comm,
    record: Record,
    *,
    what: bool | str,
    observers: list[Callable[[UpdateMeasurement], None]],
    optimizer: Optimizer,
) -> NoiseMeasurement:
    ranks = comm.ranks
    if (norm := rule_norm(recipe, ranks.world_size)) != "euclidean":
        looks = DualNormMonitor(
            comm.model,
            norm=norm,
            optimizer=optimizer,
            every_updates=LOOKS[norm],
            num_groups=max(1, GROUPS // ranks.world_size),
            process_group="all" if ranks.world_size > 1 else None,
        )
        return NoiseMeasurement(looks, ranks=ranks, record=record, num_groups=GROUPS, part=norm, observers=observers)
    own = ranks.world_size > 1 and measures_own(recipe)
    monitor = NoiseScaleMonitor(
        comm.model,
        only=norm_parameters(comm.model) if what == NORMS else None,
        population=recipe.num_train_samples,
        parts=layers_of(comm.model) if what == "layers" else None,
        along=isinstance(recipe.batch.rule, InnerProductTestSection),
        process_group="all" if ranks.world_size > 1 else None,
        own=own,
        accumulate=ranks.world_size == 1 and ranks.device.type != "cpu" and not is_sharded(comm.model),
    )
    if own and isinstance(comm, AllReduce):
        comm.observe(monitor.observe)
    num_groups = max(GROUPS, 2 * ranks.world_size) if own else GROUPS
    part = NORMS if what == NORMS else ALL
    return NoiseMeasurement(monitor, ranks=ranks, record=record, num_groups=num_groups, part=part, observers=observers)
