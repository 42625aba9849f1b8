"""A recipe's optimizer and schedule for the Trainer; where a rule sets the batch, the schedule keeps what the rule knows.

`ClockLR` saves its schedule's state, and the Trainer saves the scheduler's: so a rule is resumed with the rate.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bigbatch.batching.absa import ABSASection
from bigbatch.batching.adascale import AdaScaleSection
from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.batching.inner_product_test import InnerProductTestSection
from bigbatch.batching.noise_scale import NoiseScaleRuleSection
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import RecipeError, UserError
from bigbatch.core.clock import Clock
from bigbatch.optim.from_recipe import build_optimizer
from bigbatch.recipe import Recipe
from bigbatch.recipe.batch_rules import Measured, Scheduled
from bigbatch.scaling.plan import Plan
from bigbatch.schedules.clock_lr import ClockLR
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.schedules.scheduler_from_recipe import build_scheduler
from bigbatch.train.control.build import bounds_of, build_sources, unit_of

REFUSED = {
    AdaScaleSection: "ends the run on a clock of its own",
    ABSASection: "looks at the curvature",
    InnerProductTestSection: "keeps the last gradient, which the Trainer's state can't hold",
}
"""Rules that the Trainer can't follow, and why."""


def build(model: nn.Module, recipe: Recipe | Plan) -> tuple[Optimizer, ClockLR]:
    """For `Trainer(optimizers=build(model, recipe))`.

    Args:
        model: As the Trainer gets it.
        recipe: Or the plan that made it. With a `[batch.rule]`, `BigBatchCallback` lets the rule set the Trainer's accumulation.

    Returns:
        The recipe's optimizer, and its schedule as a scheduler, which the Trainer steps once per update.

    Raises:
        UserError: From `build_optimizer` and `build_scheduler`, or if the rule is one that the Trainer can't follow.
    """
    recipe = recipe.recipe if isinstance(recipe, Plan) else recipe
    rule, optimizer = recipe.batch.rule, build_optimizer(model, recipe)
    if rule is None:
        return optimizer, build_scheduler(optimizer, recipe)
    build_scheduler(optimizer, recipe.replace({"batch.rule": None}))  # refuses what else a scheduler can't do
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    return optimizer, ClockLR(optimizer, RuledBatch(recipe), global_batch=recipe.batch.global_batch)


class RuledBatch:
    """A schedule: the rate that goes with the batch which a rule sets.

    Args:
        recipe: With a `[batch.rule]`.

    Attributes:
        recipe: The same.
        global_batch: Samples of the next update; the rule may want another, see `wanted`.

    Raises:
        RecipeError: If the Trainer can't follow the rule.
    """

    def __init__(self, recipe: Recipe) -> None:
        rule = recipe.batch.rule
        for section, why in REFUSED.items():
            if isinstance(rule, section):
                raise RecipeError(f'batch.rule.kind = "{rule.kind}" in a Trainer: {why}; choose another rule, or train by bigbatch.fit')
        if isinstance(rule, NoiseScaleRuleSection) and rule.norm not in ("auto", "euclidean"):
            raise RecipeError(
                f'batch.rule.kind = "{rule.kind}" in a Trainer: norm = {rule.norm!r}, and BigBatchCallback measures the plain noise scale; '
                "set batch.rule.norm = 'euclidean', or train by bigbatch.fit"
            )
        self.recipe = recipe
        self.global_batch = recipe.batch.global_batch
        self.connect(SINGLE_PROCESS)

    def connect(self, ranks: Ranks) -> None:
        """Ask the rule on the first of these ranks from now on; its state stays."""
        state = self.state_dict() if hasattr(self, "_batch") else None
        self._batch, self._rate = build_sources(self.recipe, schedule_of(self.recipe), ranks)
        if state is not None:
            self.load_state_dict(state)

    @property
    def _is_scheduled(self) -> bool:
        return isinstance(self.recipe.batch.rule, Scheduled)

    @property
    def wanted(self) -> int:
        """Samples of an update, as the rule decided."""
        return self._batch.global_batch

    @property
    def unit(self) -> int:
        """Samples of which every batch is a multiple."""
        rule = self.recipe.batch.rule
        return bounds_of(self.recipe).multiple_of if isinstance(rule, Measured) else unit_of(self.recipe)

    @property
    def smallest(self) -> int:
        """Samples below which no batch falls."""
        rule, first = self.recipe.batch.rule, self.recipe.batch.global_batch
        return min(first, bounds_of(self.recipe).smallest) if isinstance(rule, Measured) else first

    def check_unit(self, unit: int) -> None:
        """Refuse batches that are no whole number of passes.

        Args:
            unit: Samples of one pass over all processes.

        Raises:
            UserError: With the remedy.
        """
        rule = self.recipe.batch.rule
        if isinstance(rule, Scheduled) and (odd := [batch for batch in rule.batches if batch % unit]):
            raise UserError(
                f'batch.rule.kind = "{rule.kind}": a batch of {odd[0]:,} is not whole passes of {unit} samples over all processes; give a '
                f"multiple of {unit}, or lower per_device_train_batch_size"
            )
        if self.unit % unit or self.recipe.batch.global_batch % unit or self.smallest % unit:
            raise UserError(
                f"batches in multiples of {self.unit} from {self.smallest}: are not whole passes of {unit} samples over all processes; set "
                f'recipe.replace({{"batch.micro_batch": {unit}}}), or lower per_device_train_batch_size'
            )

    def __call__(self, clock: Clock) -> float:
        """Factor of the peak rate, of the update that begins at `clock`."""
        return self._rate.factor(clock, self.global_batch)

    def is_due(self, clock: Clock) -> bool:
        """Whether all that was measured must be observed before `decide`."""
        return self._batch.is_due(clock)

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        self._batch.observe(seen)
        self._rate.observe(seen)

    def decide(self, clock: Clock) -> None:
        """Let the rule set `wanted`, unless it measures and its last decision still waits; every rank calls it at the same time."""
        if self._is_scheduled or self.wanted == self.global_batch:
            self._batch.decide(clock)

    def adopt(self, passes: int, unit: int, *, epoch_over: bool) -> int:
        """Set the batch of the next update to what is wanted, or as near as the Trainer can go now.

        The Trainer steps after each pass whose number in the epoch is a multiple of the accumulation, so a new one can begin only at such
        a number. A scheduled batch grows as far as it can until then; a measured one waits, so that the rule sees the batch it asked for.

        Args:
            passes: Of the epoch so far.
            unit: Samples of a pass, over all processes.
            epoch_over: Whether these are all.

        Returns:
            The accumulation: passes of the next update.
        """
        now, wanted = self.global_batch // unit, max(1, round(self.wanted / unit))
        if epoch_over or passes % wanted == 0:
            chosen = wanted
        else:
            chosen = max((number for number in range(now, wanted) if passes % number == 0), default=now) if self._is_scheduled else now
        if chosen != now:
            self.global_batch = chosen * unit
            self._rate.batch_changed(self.global_batch)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"batch": self._batch.state_dict(), "rate": self._rate.state_dict(), "global_batch": self.global_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._batch.load_state_dict(state["batch"])
        self._rate.load_state_dict(state["rate"])
        self.global_batch = state["global_batch"]
