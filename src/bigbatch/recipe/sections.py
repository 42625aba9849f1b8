"""The sections of a recipe: their fields, units, bounds and defaults.

Those of the methods stand in the methods' own files (core/methods.py says how they are found); here is what a family's have in common.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bigbatch.core.checks import check_group
from bigbatch.core.methods import BATCH_RULES, COMMS, COMPRESSIONS, DECAYS, OPTIMIZERS, WARMUPS, Registry
from bigbatch.recipe.base import Count, Fraction, Momentum, NotNegative, Positive, Section
from bigbatch.recipe.batch_rules import BatchRuleSection
from bigbatch.recipe.by_name import ByName

Betas = tuple[Momentum, Momentum]
DecayGroups = Annotated[dict[str, Literal["weights", "norms_and_biases"]], Field(min_length=1)]


class OptimizerSection(Section):
    """What every optimizer has; its own section adds `name`, `groups` and the rest."""

    rates: ClassVar[tuple[str, ...]] = ("lr",)  # fields that are learning rates
    groups_by: ClassVar[Literal["decay", "muon"]] = "decay"  # how parameters are split, as in bigbatch.optim.describe_groups
    published_decay: ClassVar[float] = 0.0  # weight decay in the paper or its released recipes

    lr: Positive  # peak learning rate
    weight_decay: NotNegative = 0.0  # in the optimizer's own unit
    clip_norm: Positive | None = None  # bound on the global norm of the mean gradient of an update

    if TYPE_CHECKING:  # fields of each, at their places
        name: str
        groups: Any

    @property
    def decay_divisor(self) -> float | None:
        """An update takes lr * weight_decay / this of a weight away; None where that depends on the gradient."""
        return None


class UniformDecay(OptimizerSection):
    """One rate for all; norms and biases decay too, unless switched off."""

    decay_norms_and_biases: bool = True  # torch's habit; Goyal et al. switch it off
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


class LayerWise(OptimizerSection):
    """A rate for each layer; norms and biases are left out, unless switched on."""

    decay_norms_and_biases: bool = False
    adapt_norms_and_biases: bool = False
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


AnyOptimizer = Annotated[OptimizerSection, ByName(OPTIMIZERS, "name")]


class WarmupSection(Section):
    """A warm-up; its own section adds `kind` and the rest."""

    learns: ClassVar[bool] = False  # whether it follows the losses, and brings a decay of its own

    if TYPE_CHECKING:
        kind: str


WARMUP_UNITS = ("epochs", "samples", "updates")


class TimedWarmup(WarmupSection):
    """A warm-up of a known length, in exactly one of the fields `epochs`, `samples`, and `updates` of the recipe's batch."""

    if TYPE_CHECKING:
        epochs: float | None
        samples: int | None
        updates: int | None

    @property
    def unit(self) -> str:
        """The field that holds the length."""
        return next(name for name in WARMUP_UNITS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in WARMUP_UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(WARMUP_UNITS)}; got {' and '.join(given) or 'none'}")
        return self


class DecaySection(Section):
    """A decay; its own section adds `kind` and the rest."""

    if TYPE_CHECKING:
        kind: str


AnyWarmup = Annotated[WarmupSection, ByName(WARMUPS, "kind")]
AnyDecay = Annotated[DecaySection, ByName(DECAYS, "kind")]


class Schedule(Section):
    """Learning rate = optimizer.lr x warmup x decay, both pure functions of the samples consumed, but for AutoWU, which sees losses.

    "sequential": the rate warms up to its peak, then decays over what is left of the run. "product": the decay runs from the first
    sample on, also during the warm-up, so the peak is never reached. Milestones of a step decay count from the start of the run in both.
    """

    warmup: AnyWarmup = Field(default_factory=lambda: WARMUPS["none"].section())
    decay: AnyDecay = Field(default_factory=lambda: DECAYS["constant"].section())
    combine: Literal["sequential", "product"] = "sequential"

    @model_validator(mode="after")
    def _decays_once(self) -> Self:
        if self.warmup.learns and self.decay.kind != "constant":
            raise ValueError(
                f'decay.kind = "{self.decay.kind}" with warmup.kind = "{self.warmup.kind}": has a decay of its own, from where its warm-up '
                'ends; set schedule.decay.kind = "constant", and choose by schedule.warmup.decay'
            )
        return self


AnyBatchRule = Annotated[BatchRuleSection, ByName(BATCH_RULES, "kind")]


class Batch(Section):
    """How many samples go together, and for what."""

    global_batch: Count  # one update, over all workers
    ghost_batch: Count | Literal["global"] | None = None  # one normalisation group; None: the model has no batch norm
    micro_batch: Count | Literal["auto"] = "auto"  # one forward pass; "auto" measures the fastest; never changes the update
    noise_batch: Count | None = None  # multiplicative noise that makes the gradient as noisy as of so many samples; None: none
    rule: AnyBatchRule | None = None  # sets global_batch anew while the run goes on

    def check_recipe(self, recipe: Any) -> None:
        """Refuse batches that don't fit into each other or into the training set, and a rule that does not go with the rest."""
        if self.global_batch > recipe.num_train_samples:
            raise ValueError(
                f"batch.global_batch = {self.global_batch:,}: is larger than the training set of {recipe.num_train_samples:,} samples; "
                "choose a batch that fits into it"
            )
        if self.rule is not None:
            self.rule.check_recipe(recipe)
            self._check_bounds(self.rule)
            if recipe.comm.label_skew:
                raise ValueError(
                    f"comm.label_skew = {recipe.comm.label_skew:g}: each worker has samples of its own, of which a batch that changes "
                    "would not take the same share; leave out batch.rule"
                )
        if self.noise_batch is not None and self.noise_batch >= self.global_batch:
            raise ValueError(
                f"batch.noise_batch = {self.noise_batch}: must be smaller than global_batch = {self.global_batch}, whose gradient is no "
                "noisier than that of so many samples; leave it out"
            )
        self._check_ghost_batch()

    def _check_bounds(self, rule: BatchRuleSection) -> None:
        largest, smallest = getattr(rule, "largest", None), getattr(rule, "smallest", None)
        if largest is not None and largest < (smallest or self.global_batch):
            other = f"global_batch = {self.global_batch:,}" if smallest is None else f"batch.rule.smallest = {smallest:,}"
            raise ValueError(f"batch.rule.largest = {largest:,}: must be at least {other}; give a larger one")

    def _check_ghost_batch(self) -> None:
        ghost, micro = self.ghost_batch, self.micro_batch
        if isinstance(ghost, int):
            check_group("batch.ghost_batch", ghost)
            if ghost > self.global_batch:
                raise ValueError(f"batch.ghost_batch = {ghost}: is larger than global_batch = {self.global_batch}; lower ghost_batch")
            if isinstance(micro, int) and micro % ghost:
                raise ValueError(
                    f"batch.micro_batch = {micro}: must be a multiple of ghost_batch = {ghost}, or a forward pass would cut a "
                    'normalisation group in two; choose a multiple or "auto"'
                )
        if ghost == "global" and isinstance(micro, int) and micro < self.global_batch:
            raise ValueError(
                f'batch.micro_batch = {micro}: batch norm over the "global" batch needs it in one forward pass; '
                'set ghost_batch to a number or micro_batch to "auto"'
            )


class Budget(Section):
    """Length of the run, in exactly one unit."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    samples: Count | None = None
    updates: Count | None = None
    tokens: Count | None = None
    tokens_per_sample: Positive | None = None  # on average; with tokens, and only then

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("epochs", "samples", "updates", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, samples, updates, tokens; got {' and '.join(given) or 'none'}")
        if self.tokens is not None and self.tokens_per_sample is None:
            raise ValueError(
                f"tokens = {self.tokens:,}: of how many samples, is not known; give tokens_per_sample too, such as the length of a sequence"
            )
        if self.tokens is None and self.tokens_per_sample is not None:
            raise ValueError(
                f"tokens_per_sample = {self.tokens_per_sample:g} without tokens: says nothing of a budget in {given[0]}; drop it"
            )
        return self


class CommSection(Section):
    """What every way of several workers has; its own section adds `kind` and the rest."""

    local_steps: ClassVar[bool] = False  # whether workers take steps of their own, so that none has the mean gradient
    applies_to_one_worker: ClassVar[bool] = False  # whether it changes the steps of one worker alone too

    label_skew: Fraction = 0.0  # share of the data that lies with workers by label; 0: anyone's, anew in each epoch

    if TYPE_CHECKING:
        kind: str


class CompressionSection(Section):
    """A way to make gradients smaller before all-reduce; its own section adds `kind` and the rest."""

    if TYPE_CHECKING:
        kind: str


AnyComm = Annotated[CommSection, ByName(COMMS, "kind")]
AnyCompression = Annotated[CompressionSection, ByName(COMPRESSIONS, "kind")]

TAGS = {
    "optimizer": "name",
    "schedule.warmup": "kind",
    "schedule.decay": "kind",
    "batch.rule": "kind",
    "comm": "kind",
    "comm.compression": "kind",
}
"""The field that says which kind of a section is meant."""

KINDS: dict[str, Registry] = {
    "optimizer": OPTIMIZERS,
    "schedule.warmup": WARMUPS,
    "schedule.decay": DECAYS,
    "batch.rule": BATCH_RULES,
    "comm": COMMS,
    "comm.compression": COMPRESSIONS,
}
"""Which kinds there are."""
